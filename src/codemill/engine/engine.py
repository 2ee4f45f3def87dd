"""The engine: requests go in, each step computes some tokens of some of them, and finished ones come out."""

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from codemill.engine.cache_manager import CacheManager
from codemill.engine.disk_cache import DiskCache
from codemill.engine.engine_counts import EngineCounts
from codemill.engine.request import Request
from codemill.engine.runner import ForwardPass, ModelRunner
from codemill.engine.sampler import Sampler
from codemill.engine.scheduler import ScheduledSequence, Scheduler, Step
from codemill.engine.sequence import SampledToken, Sequence
from codemill.engine.speculative import Speculation
from codemill.engine_config import EngineConfig
from codemill.errors import CodemillError, UsageError
from codemill.models.cache import Cache


@dataclass(frozen=True)
class EngineParts:
    """What an engine is made of. memory: all caches, the runner's and the drafter's; disk: what outlives them."""

    config: EngineConfig
    cache: CacheManager
    runner: ModelRunner
    speculation: Speculation
    memory: list[Cache]
    disk: DiskCache | None = None


class Engine:
    """Continuous batching over one model. Not thread-safe: one caller at a time.

    `add` puts a request in the queue, `step` computes one pass, `abort` takes a request out. A sequence that fails has
    an `error`, and no other is touched by it. What interrupts a call, such as Ctrl-C or want of memory, is raised, and
    requests that were running are then computed again.
    """

    def __init__(self, parts: EngineParts) -> None:
        self.cache = parts.cache
        self.runner = parts.runner
        self.scheduler = Scheduler(parts.config, parts.cache)
        self._counts = EngineCounts(self.scheduler, parts.cache)
        self.metrics = self._counts.metrics
        self._speculation = parts.speculation
        self._memory = parts.memory
        self._disk = parts.disk
        self.is_asleep = self.is_closed = False
        self._sampler = self._new_sampler([])
        self._sampled: list[Sequence] = []
        self._to_abort: queue.SimpleQueue[Request] = queue.SimpleQueue()  # `put` may interrupt any call, also its own
        # What an exception would leave half done: nothing, a pass, or the accounts of who holds and waits for what.
        self._at_risk: Literal["nothing", "pass", "accounts"] = "nothing"

    @property
    def is_idle(self) -> bool:
        return self.scheduler.is_idle

    def check_open(self) -> None:
        """Raise UsageError after `close`."""
        if self.is_closed:
            raise UsageError("this LLM is closed: make a new one")

    def add(self, request: Request) -> None:
        """Queue the sequences of a request."""
        self.check_open()
        for sequence in request.sequences:
            sequence.added_time = request.start
            self.metrics.request_received(len(sequence.prompt_token_ids))
            self.scheduler.add(sequence)

    def abort(self, request: Request, stop_reason: str | None = None) -> None:
        """Stop what is not finished of a request; what it computed stays in the prefix cache."""
        self._end(request, lambda sequence: sequence.finish("abort", stop_reason))

    def abort_soon(self, request: Request) -> None:
        """Have a request aborted by the next `settle` or `step`, or by the one that is under way.

        This may be called from any thread at any time, so also by the garbage collector in the middle of a step.
        """
        self._to_abort.put(request)

    def settle(self) -> None:
        """Abort what `abort_soon` was given. While a step is under way nothing happens: it does so at its end."""
        while self._at_risk == "nothing":
            try:
                request = self._to_abort.get_nowait()
            except queue.Empty:
                return
            try:
                self.abort(request)
            except BaseException:
                self._to_abort.put(request)
                raise

    def fail(self, request: Request, error: CodemillError) -> None:
        """Stop what is not finished of a request, because of an error."""
        self._end(request, lambda sequence: sequence.fail(error))

    def weights_changed(self) -> None:
        """Nothing that was computed with other weights may be used any more: prompts that run are computed again.

        From now on nothing is kept on disk, since what lies there is of the weights that were loaded.
        """
        self.cache.keeper = None
        self._forget()

    def close(self) -> None:
        """Write what is on its way to disk, and take no more requests."""
        self.is_closed = True
        if self._disk is not None:
            self._disk.store.close()

    def sleep(self) -> None:
        """Free the memory of the cache. What was running goes on after `wake`, and is then computed again."""
        self.check_open()
        self._forget()
        self.is_asleep = True
        for cache in self._memory:
            cache.free()

    def wake(self) -> None:
        """Take the memory again."""
        self.check_open()
        if self.is_asleep:
            for cache in self._memory:
                cache.refill()
        self.is_asleep = False

    # Not a context around the caller's loop: a stream hands control back between steps, outside inference mode.
    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Compute one pass -> the sequences that have new tokens.

        Raises what the network raises; everything that was running is then computed again.
        """
        self.check_open()
        if self.is_asleep:
            raise CodemillError("the engine sleeps: wake it first")
        self._restore()
        self.settle()
        with self._changing():
            step = self.scheduler.schedule()
            self._at_risk = "pass"
            self.metrics.preemptions += len(step.preempted)
            chosen = self._compute(step) if step.scheduled else []
        self.settle()
        return chosen

    def _compute(self, step: Step) -> list[Sequence]:
        self._counts.pass_begins(step)
        done = self.runner.run(step, self.cache.state_copies)
        self.runner.record_prompt_logprobs(done, step)
        self.runner.record_hidden_states(done, step)
        chosen = [each.sequence for each in step.scheduled if each.reaches_end]
        beginning = [sequence for sequence in chosen if not sequence.token_ids]
        num_accepted = self._choose(done, step)
        done.context.commit(num_accepted)
        self._speculation.follow(done, step, num_accepted)
        self._at_risk = "accounts"
        self.scheduler.complete(step, num_accepted)
        self._at_risk = "pass"
        self._counts.first_tokens(beginning)
        self._counts.step_done(step, num_accepted)
        self._speculation.propose([s for s in self.scheduler.running if s.num_pending == 1])
        return chosen

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """What is interrupted in here leaves requests that are computed again, and nothing else."""
        self._restore()
        self._at_risk = "accounts"
        try:
            yield
        except BaseException:
            self._restore()
            raise
        self._at_risk = "nothing"

    def _restore(self) -> None:
        """Bring in order what an interrupt left half done; if this is interrupted itself, the next call does it."""
        if self._at_risk == "pass":
            self._at_risk = "accounts"
            self.cache.cancel()
            self.scheduler.preempt_all()
            if self.cache.is_unused:
                self._at_risk = "nothing"
        if self._at_risk == "accounts":
            self.scheduler.start_over()
        self._at_risk = "nothing"

    def _end(self, request: Request, end: Callable[[Sequence], None]) -> None:
        """End what is not finished of a request, and schedule it no more."""
        with self._changing():
            for sequence in request.sequences:
                if sequence.finish_reason is None:
                    end(sequence)
                    self._counts.finished(sequence)
            for sequence in request.sequences:
                self.scheduler.remove(sequence)
            self._counts.set_gauges()

    def _forget(self) -> None:
        with self._changing():
            self.scheduler.preempt_all()
            self.cache.forget_all()

    def _choose(self, done: ForwardPass, step: Step) -> list[int]:
        """Give sequences their next tokens -> how many drafts of each scheduled sequence were right.

        A sequence goes on as long as its token is the one that was drafted, since the logits that follow it are known.
        """
        num_accepted = [0] * len(step.scheduled)
        choosing = [(i, each) for i, each in enumerate(step.scheduled) if each.reaches_end]
        if not choosing:
            return num_accepted
        logits, first_rows = self._logits(done, choosing)
        position = 0
        while choosing:
            rows = [first_rows[i] + position for i, _ in choosing]
            tokens = self._sample([each.sequence for _, each in choosing], logits, rows)
            going_on = []
            for (i, each), token in zip(choosing, tokens, strict=True):
                _append(each.sequence, token)
                if position < len(each.drafts) and token.token_id == each.drafts[position]:
                    num_accepted[i] += 1
                    if each.sequence.finish_reason is None:
                        going_on.append((i, each))
            choosing, position = going_on, position + 1
        return num_accepted

    def _logits(
        self, done: ForwardPass, choosing: list[tuple[int, ScheduledSequence]]
    ) -> tuple[Tensor, dict[int, int]]:
        """Logits [n, V] after the last certain token and after each draft, and where each sequence's begin."""
        rows: list[int] = []
        first_rows = {}
        for i, each in choosing:
            first_rows[i] = len(rows)
            first = done.rows[i] + each.num_new - 1
            rows += range(first, first + 1 + len(each.drafts))
        sequences, counts = [each.sequence for _, each in choosing], [1 + len(each.drafts) for _, each in choosing]
        hidden = done.hidden if len(rows) == done.hidden.shape[0] else done.hidden[rows]
        return self.runner.logits(hidden, sequences, counts), first_rows

    def _sample(self, sequences: list[Sequence], logits: Tensor, rows: list[int]) -> list[SampledToken]:
        if sequences != self._sampled:
            self._sampler, self._sampled = self._new_sampler(sequences), sequences
        return self._sampler.sample(logits if len(rows) == logits.shape[0] else logits[rows])

    def _new_sampler(self, sequences: list[Sequence]) -> Sampler:
        model = self.runner.model
        return Sampler(sequences, model.config.vocab_size, model.device)


def _append(sequence: Sequence, token: SampledToken) -> None:
    """Take the token; what is wrong with it ends this sequence alone."""
    if token.error is not None:
        sequence.fail(token.error)
        return
    try:
        sequence.append(token)
    except CodemillError as error:
        sequence.fail(error)
    except BaseException:  # of its tokens, text and grammar some are a token ahead of the others
        sequence.fail(CodemillError("the request was interrupted within a token: send it again"))
        raise
