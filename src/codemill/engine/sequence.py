"""One sample in the making: its tokens, its text, and when it stops. No torch here."""

import random
import time
from dataclasses import dataclass, field

from codemill.chat.detokenizer import Detokenizer, TokenBytes
from codemill.engine.generation_config import Distribution
from codemill.engine.outputs import CompletionOutput, FinishReason
from codemill.engine.sampling_params import SamplingParams
from codemill.engine.stops import StopScanner


@dataclass(frozen=True)
class SequenceLimits:
    """What ends a sequence: `max_tokens`, end-of-text ids, and the ids the request asked to stop at."""

    max_tokens: int
    eos_token_ids: frozenset[int] = frozenset()
    stop_token_ids: frozenset[int] = frozenset()

    @property
    def stop_ids(self) -> frozenset[int]:
        return self.eos_token_ids | self.stop_token_ids


@dataclass(frozen=True)
class SampledToken:
    """A token chosen by the sampler; log-probabilities only where the request wants them."""

    token_id: int
    logprob: float | None = None
    top_logprobs: dict[int, float] | None = None


@dataclass(eq=False)
class Sequence:
    """A prompt and what has been generated for it. `text_pieces` holds text that is final, stop strings cut off."""

    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    distribution: Distribution
    limits: SequenceLimits
    tokenizer: TokenBytes
    seed: str = ""
    index: int = 0
    token_ids: list[int] = field(default_factory=list)
    text_pieces: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    first_token_time: float = 0.0
    finish_time: float = 0.0

    def __post_init__(self) -> None:
        # A generator of its own makes a sample independent of the batch, and the same on every device.
        self.random = random.Random(self.seed)
        self._detokenizer = Detokenizer(self.tokenizer, self.params.skip_special_tokens)
        self._scanner = StopScanner(self.params.stop_strings)

    @property
    def max_length(self) -> int:
        """Tokens of the prompt and of the longest possible output."""
        return len(self.prompt_token_ids) + self.limits.max_tokens

    @property
    def banned_ids(self) -> frozenset[int]:
        """Ids that the next token must not be, because the output is shorter than `min_tokens`."""
        return self.limits.stop_ids if len(self.token_ids) < self.params.min_tokens else frozenset()

    def append(self, token: SampledToken) -> None:
        """Take the next token; sets `finish_reason` if it is the last."""
        self.token_ids.append(token.token_id)
        if token.logprob is not None and token.top_logprobs is not None:
            self.logprobs.append(token.logprob)
            self.top_logprobs.append(token.top_logprobs)
        if len(self.token_ids) == 1:
            self.first_token_time = time.perf_counter()
        if token.token_id in self.limits.stop_ids:
            requested = token.token_id in self.limits.stop_token_ids
            self._finish("stop", token.token_id if requested else None)
            return
        self._add_text(self._scan(self._detokenizer.feed(token.token_id)))
        if self._scanner.found is not None:
            self._finish("stop", self._scanner.found)
        elif len(self.token_ids) >= self.limits.max_tokens:
            self._finish("length")

    def output(self) -> CompletionOutput:
        """The finished sample."""
        assert self.finish_reason is not None
        wanted = self.params.logprobs is not None
        return CompletionOutput(
            index=self.index,
            text="".join(self.text_pieces),
            token_ids=list(self.token_ids),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            logprobs=list(self.logprobs) if wanted else None,
            top_logprobs=list(self.top_logprobs) if wanted else None,
        )

    def _scan(self, text: str) -> str:
        """Stop strings count only in the text of tokens after the first `min_tokens`."""
        return self._scanner.feed(text) if len(self.token_ids) > self.params.min_tokens else text

    def _add_text(self, text: str) -> None:
        if text:
            self.text_pieces.append(text)

    def _finish(self, reason: FinishReason, stop_reason: str | int | None = None) -> None:
        if self._scanner.found is None:
            self._add_text(self._scan(self._detokenizer.finish()) + self._scanner.finish())
        if self._scanner.found is not None:
            reason, stop_reason = "stop", self._scanner.found
        self.finish_reason, self.stop_reason = reason, stop_reason
        self.finish_time = time.perf_counter()
