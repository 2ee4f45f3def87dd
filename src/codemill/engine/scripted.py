"""`ScriptedEngine`: a function decides what the model says; all else is real. For tests and measurements."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from codemill.chat.tokenizer import Tokenizer
from codemill.engine.admission import Admission
from codemill.engine.generation_config import GenerationConfig
from codemill.engine.live_request import LiveRequest
from codemill.engine.metrics import EngineMetrics
from codemill.engine.request import Request, RequestBuilder
from codemill.engine.sequence import SampledToken, Sequence
from codemill.engine.serving import ServingEngine, Submission
from codemill.engine.updates import Progress, StreamUpdate
from codemill.errors import CodemillError, UsageError
from codemill.spec import resolve

Script = Callable[[str], str]
# After the script, where a grammar wants more than it says: the end of a tool call, which other grammars do not allow.
CLOSING_TAGS = b"\n</parameter>\n</function>\n</tool_call>"
CLOSERS = '"}],'  # where the grammar allows no token of the script, what soon ends the text
HIDDEN_SIZE = 64
TOKENS_IN_A_ROW = 64  # before others have their turn
PREFILL_PARTS = 10  # reports of how far a slow prompt is


class ScriptedEngine(ServingEngine):
    """Answers a prompt with the text that `script(prompt)` returns, token by token, within the request's grammar.

    tokenizer: None for the embedded model's. token_seconds, prefill_seconds: how long a token and a prompt take.
    max_num_seqs: requests that run at the same time; others wait. A script that raises fails its request.
    """

    def __init__(
        self,
        script: Script,
        tokenizer: Tokenizer | None = None,
        *,
        max_model_len: int = 32768,
        max_num_seqs: int = 256,
        max_waiting: int | None = None,
        keep_alive: float = 5.0,
        token_seconds: float = 0.0,
        prefill_seconds: float = 0.0,
    ) -> None:
        tokenizer = tokenizer or Tokenizer.load()
        config = replace(
            resolve().load_config(),
            vocab_size=tokenizer.vocab_size,
            max_position_embeddings=max_model_len,
            eos_token_id=None,
        )
        builder = RequestBuilder(config, tokenizer, GenerationConfig())
        super().__init__(builder, tokenizer, Admission(max_waiting, max_num_seqs), keep_alive)
        self._script = script
        self._text_ids = lru_cache(maxsize=16)(lambda text: tuple(tokenizer.encode(text, allowed_special="all")))
        self._num_free = max_num_seqs
        self._token_seconds = token_seconds
        self._prefill_seconds = prefill_seconds
        self._metrics = EngineMetrics()
        self._adapters: dict[str, Path] = {}
        self._waiting: dict[str, asyncio.Event] = {}
        self._live: dict[str, LiveRequest] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def metrics(self) -> dict[str, Any]:
        self._metrics.running, self._metrics.waiting = len(self._live) - len(self._waiting), len(self._waiting)
        return self._metrics.snapshot()

    async def update_weights(self, directory: str | Path) -> None:
        raise UsageError("a scripted engine has no weights")

    async def add_adapter(self, name: str, directory: str | Path) -> None:
        self._adapters[name] = Path(directory)

    async def remove_adapter(self, name: str) -> None:
        self._find_adapter(name)
        del self._adapters[name]

    async def sleep(self) -> None:
        """Nothing to free."""

    async def wake(self) -> None:
        """Nothing to bring back."""

    def _find_adapter(self, name: str | None) -> None:
        if name is not None and name not in self._adapters:
            raise UsageError(f"unknown adapter {name!r}")

    def _submit(self, request: Request, submission: Submission) -> None:
        deadline = None if submission.deadline is None else request.start + submission.deadline
        live = LiveRequest(submission.request_id, request, deadline, submission.wants_updates)
        self._live[submission.request_id] = live
        self._metrics.request_received(len(request.prompt.token_ids))
        task = asyncio.get_running_loop().create_task(self._serve(live))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _abort(self, request_id: str) -> None:
        live = self._live.pop(request_id, None)
        if live is None:
            return
        for sequence in live.request.sequences:
            if sequence.finish_reason is None:  # the others were reported when they ended
                self._end(live, sequence, "abort")
        place = self._waiting.pop(request_id, None)
        if place is not None:
            place.set()

    def _shut_down(self, timeout: float) -> None:
        end = time.perf_counter() + timeout
        while self._live and time.perf_counter() < end:
            time.sleep(0.005)
        for request_id in list(self._live):
            self._abort(request_id)

    async def _serve(self, live: LiveRequest) -> None:
        await self._take_place(live)
        try:
            await self._prefill(live)
            text = self._script(self._prompt_text(live.request))
            for sequence in live.request.sequences:
                await self._answer(live, sequence, text)
        except Exception as error:  # noqa: BLE001 - as in EngineLoop, it ends this request and no other
            told = error if isinstance(error, CodemillError) else CodemillError(f"{type(error).__name__}: {error}")
            self._deliver([(live.request_id, told)])
        finally:
            self._live.pop(live.request_id, None)
            self._give_place()

    async def _take_place(self, live: LiveRequest) -> None:
        if self._num_free:
            self._num_free -= 1
            return
        self._waiting[live.request_id] = place = asyncio.Event()
        update = live.progress_update(len(self._waiting) - 1)
        assert update is not None
        self._deliver([(live.request_id, update)])
        await place.wait()  # whoever ends hands the place over, except to one that was aborted meanwhile
        if live.request_id not in self._live:
            self._num_free -= 1

    def _give_place(self) -> None:
        if not self._waiting:
            self._num_free += 1
            return
        self._waiting.pop(next(iter(self._waiting))).set()

    async def _prefill(self, live: LiveRequest) -> None:
        now, num_tokens = time.perf_counter(), len(live.request.prompt.token_ids)
        for sequence in live.request.sequences:
            sequence.start_time = now
            if sequence.params.prompt_logprobs is not None:
                sequence.prompt_logprobs = [{token_id: 0.0} for token_id in sequence.prompt_token_ids[1:]]
            if sequence.params.hidden_state:
                sequence.hidden_state = _hidden_state(sequence)
        self._metrics.request_started(now - live.request.start, 0)
        for part in range(PREFILL_PARTS if self._prefill_seconds else 0):
            progress = Progress(None, num_tokens * part // PREFILL_PARTS, num_tokens)
            self._deliver([(live.request_id, StreamUpdate(progress=progress))])
            await asyncio.sleep(self._prefill_seconds / PREFILL_PARTS)

    async def _answer(self, live: LiveRequest, sequence: Sequence, text: str) -> None:
        wants_logprobs = sequence.params.logprobs is not None
        for token_id in self._tokens(sequence, text):
            if live.request_id not in self._live:  # aborted
                return
            if live.deadline is not None and time.perf_counter() > live.deadline:
                self._end(live, sequence, "deadline")
                return
            top = {token_id: 0.0} if wants_logprobs else None
            sequence.append(SampledToken(token_id, 0.0 if wants_logprobs else None, top))
            if sequence.finish_reason is not None:
                break
            self._report(live, sequence)
            if self._token_seconds or len(sequence.token_ids) % TOKENS_IN_A_ROW == 0:
                await asyncio.sleep(self._token_seconds)
        if sequence.finish_reason is None:
            sequence.finish("stop")
        self._end(live, sequence, None)

    def _tokens(self, sequence: Sequence, text: str) -> Iterator[int]:
        """The tokens of the text; with a grammar those that it allows, as near to the text as can be."""
        if sequence.grammar is None:
            yield from self._text_ids(text)
            yield from self.tokenizer.eos_token_ids[:1]
            return
        left, more = text.encode(), CLOSING_TAGS
        while True:
            if not left and not sequence.grammar.is_accepting:
                left, more = more, b""
            token_id = self._allowed(sequence, left.decode("utf-8", "replace"))
            yield token_id
            piece = self.tokenizer.token_bytes(token_id)
            left = left[len(piece) :] if left.startswith(piece) else left

    def _allowed(self, sequence: Sequence, text: str) -> int:
        grammar = sequence.grammar
        assert grammar is not None
        forced = grammar.forced_tokens()
        if forced:
            return forced[0]
        wanted = self.tokenizer.encode(text, allowed_special="all")[:1] or list(self.tokenizer.eos_token_ids[:1])
        for token_id in (*wanted, *(self.tokenizer.encode(text)[0] for text in CLOSERS)):
            if grammar.num_valid([token_id]):
                return token_id
        mask = np.zeros(-(-self.tokenizer.vocab_size // 32), np.int32)
        grammar.fill_mask(mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        return int(bits.argmax())

    def _report(self, live: LiveRequest, sequence: Sequence) -> None:
        update = live.update(sequence)
        if update is not None:
            self._deliver([(live.request_id, update)])

    def _end(self, live: LiveRequest, sequence: Sequence, because: str | None) -> None:
        """Report the end of a sequence; because: "abort", "deadline", or None where it ended by itself."""
        if because is not None and sequence.finish_reason is None:
            sequence.start_time = sequence.start_time or time.perf_counter()
            sequence.finish("abort", None if because == "abort" else because)
        assert sequence.finish_reason is not None
        seconds = sequence.finish_time - live.request.start
        decode_seconds = sequence.finish_time - (sequence.first_token_time or sequence.finish_time)
        if sequence.first_token_time:
            self._metrics.first_token(sequence.first_token_time - live.request.start)
        self._metrics.request_finished(sequence.finish_reason, len(sequence.token_ids), seconds, decode_seconds)
        self._report(live, sequence)

    def _prompt_text(self, request: Request) -> str:
        text = request.prompt.text
        return self.tokenizer.decode(request.prompt.token_ids) if text is None else text


def _hidden_state(sequence: Sequence) -> list[float]:
    """The same numbers for the same prompt."""
    draw = random.Random(repr(sequence.prompt_token_ids))
    return [draw.gauss(0, 1) for _ in range(HIDDEN_SIZE)]
