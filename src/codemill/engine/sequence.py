"""One sample in the making: its tokens, its text, when it stops, and what of it is in the cache. No torch here."""

import time
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING

from codemill.chat.detokenizer import Detokenizer, TokenBytes
from codemill.engine.generation_config import Distribution
from codemill.engine.grammar import GrammarState
from codemill.engine.outputs import CompletionOutput, FinishReason
from codemill.engine.sampling_params import SamplingParams
from codemill.engine.seen_tokens import SeenTokens
from codemill.engine.stops import StopScanner
from codemill.errors import CodemillError

if TYPE_CHECKING:
    from codemill.models.lora import LoraAdapter


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
    """A token chosen by the sampler; log-probabilities only where the request wants them. error: why there is none."""

    token_id: int
    logprob: float | None = None
    top_logprobs: dict[int, float] | None = None
    error: CodemillError | None = None


@dataclass
class CachedTokens:
    """What of a sequence is in the cache. Tokens beyond `num_computed` are not, whatever their slots hold.

    names: of the full blocks, by content, as far as they were asked for. latest_checkpoint: the copy of the state that
    the next one replaces.
    """

    block_table: list[int] = field(default_factory=list)
    num_computed: int = 0
    names: list[bytes] = field(default_factory=list)
    state_slot: int = 0
    latest_checkpoint: bytes | None = None


@dataclass(eq=False)
class Sequence:
    """A prompt and what has been generated for it. `text_pieces` holds text that is final, stop strings cut off.

    priority: lower runs first; `arrival` decides between equals. drafts: guesses at the next tokens, for the engine to
    check, or, if `is_forced`, what a grammar forces; draft_limit: how many to guess, 0 before the first. num_reused:
    tokens of the prompt that the prefix cache had.
    """

    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    distribution: Distribution
    limits: SequenceLimits
    tokenizer: TokenBytes
    seed: str = ""
    index: int = 0
    priority: int = 0
    adapter: "LoraAdapter | None" = None
    grammar: GrammarState | None = None
    arrival: int = 0
    token_ids: list[int] = field(default_factory=list)
    text_pieces: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    prompt_logprobs: list[dict[int, float]] = field(default_factory=list)
    hidden_state: list[float] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    cached: CachedTokens = field(default_factory=CachedTokens)
    num_reused: int = 0
    drafts: list[int] = field(default_factory=list)
    draft_limit: int = 0
    is_forced: bool = False
    error: CodemillError | None = None
    added_time: float = 0.0
    start_time: float = 0.0
    first_token_time: float = 0.0
    finish_time: float = 0.0

    def __post_init__(self) -> None:
        self.all_token_ids = [*self.prompt_token_ids, *self.token_ids]
        self._stop_ids = self.limits.stop_ids
        self._detokenizer = Detokenizer(self.tokenizer, self.params.skip_special_tokens)
        self._scanner = StopScanner(self.params.stop_strings)

    @property
    def rank(self) -> tuple[int, int]:
        """Order of service."""
        return self.priority, self.arrival

    @property
    def salt(self) -> bytes:
        """What besides the tokens shapes the values in the cache."""
        return b"" if self.adapter is None else self.adapter.fingerprint

    @property
    def max_length(self) -> int:
        """Tokens of the prompt and of the longest possible output."""
        return len(self.prompt_token_ids) + self.limits.max_tokens

    @property
    def num_pending(self) -> int:
        """Tokens that are not in the cache yet: 1 in plain decode."""
        return len(self.all_token_ids) - self.cached.num_computed

    @property
    def num_left(self) -> int:
        """The most tokens that may still be generated."""
        return self.limits.max_tokens - len(self.token_ids)

    @property
    def banned_ids(self) -> frozenset[int]:
        """Ids that the next token must not be, because the output is shorter than `min_tokens`."""
        return self._stop_ids if len(self.token_ids) < self.params.min_tokens else frozenset()

    @property
    def wants_logprobs(self) -> bool:
        return self.params.logprobs is not None or self.params.best_of is not None

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.params.prompt_logprobs is not None and not self.token_ids

    @property
    def mean_logprob(self) -> float:
        """Log-probability per token, by which the best of several samples is chosen."""
        return sum(self.logprobs) / max(1, len(self.logprobs))

    @cached_property
    def seen(self) -> SeenTokens:
        """For penalties; made when first asked for."""
        return SeenTokens(self.prompt_token_ids)

    def noise_key(self, ahead: int = 0) -> int:
        """The 64 bits that decide the draw of the next token, or of one `ahead` of it.

        They depend on the seed and on the token's position only: not on the batch, not on what was guessed or computed
        again.
        """
        digest = blake2b(f"{self.seed}/{len(self.token_ids) + ahead}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def append(self, token: SampledToken) -> None:
        """Take the next token; sets `finish_reason` if it is the last."""
        token_id = token.token_id
        self.token_ids.append(token_id)
        self.all_token_ids.append(token_id)
        if token.logprob is not None and token.top_logprobs is not None:
            self.logprobs.append(token.logprob)
            self.top_logprobs.append(token.top_logprobs)
        if len(self.token_ids) == 1:
            self.first_token_time = time.perf_counter()
        if token_id in self._stop_ids:
            requested = token_id in self.limits.stop_token_ids
            self.finish("stop", token_id if requested else None)
            return
        text = self._detokenizer.feed(token_id)
        self._add_text(self._scan(text) if self.params.stop is not None else text)
        if self.grammar is not None:
            self.grammar.accept(token_id)
        if self._scanner.found is not None:
            self.finish("stop", self._scanner.found)
        elif self.grammar is not None and self.grammar.is_finished:
            self.finish("stop")
        elif len(self.token_ids) >= self.limits.max_tokens:
            self.finish("length")

    def fail(self, error: CodemillError) -> None:
        """End the sequence because of an error, which concerns no other sequence."""
        self.error = error
        self.finish("error")

    def finish(self, reason: FinishReason, stop_reason: str | int | None = None) -> None:
        """End the sequence; text that was held back is given out, unless a stop string turns up in it."""
        if self._scanner.found is None:
            self._add_text(self._scan(self._detokenizer.finish()) + self._scanner.finish())
        if self._scanner.found is not None:
            reason, stop_reason = "stop", self._scanner.found
        self.finish_reason, self.stop_reason = reason, stop_reason
        self.finish_time = time.perf_counter()

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
