"""What generation gives back. No torch here."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class CompletionOutput:
    """One sample. `token_ids` ends with the token that stopped it; `text` never includes what stopped it.

    `finish_reason` is "stop" (end of text, a stop string or stop id, or a grammar that is complete), "length"
    (max_tokens, or the context is full), "abort" or "error". `stop_reason` is the stop string or the stop id of the
    request that was met, None otherwise. `logprobs[t]` belongs to `token_ids[t]`; `top_logprobs[t]` maps the likeliest
    ids there to theirs, best first. Both are None unless asked for.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None


@dataclass(frozen=True)
class RequestMetrics:
    """Token counts and seconds since the call began. In a batch the seconds include the waiting for other requests.

    num_cached_tokens: tokens of the prompt that were not computed, since the prefix cache had them. queue_seconds: from
    the call until the prompt was begun.
    """

    num_prompt_tokens: int
    num_output_tokens: int
    first_token_seconds: float
    total_seconds: float
    num_cached_tokens: int = 0
    queue_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of decode: tokens after the first per second after the first (0 if there are none)."""
        seconds = self.total_seconds - self.first_token_seconds
        return (self.num_output_tokens - 1) / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class RequestOutput:
    """All samples of one prompt. `prompt` is None if the request gave token ids.

    `prompt_logprobs[t]`, if asked for, has the log-probability of prompt token t first, then those of the likeliest
    ids there, best first; it is None for the first token, which nothing predicts. `hidden_state` [D], if asked for, is
    the final hidden state of the prompt's last token, after the last norm.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    prompt_logprobs: list[dict[int, float] | None] | None = None
    hidden_state: list[float] | None = None


class StreamPiece(str):
    """Some more text of a stream: a `str`, so that it prints, joins and adds as text, and what came with it.

    `token_ids` are the tokens since the piece before (the text of some may still be held back). The last piece alone
    has a `finish_reason` and `metrics`; it may be empty.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    metrics: RequestMetrics | None

    def __new__(
        cls,
        text: str,
        token_ids: tuple[int, ...] = (),
        finish_reason: FinishReason | None = None,
        stop_reason: str | int | None = None,
        metrics: RequestMetrics | None = None,
    ) -> "StreamPiece":
        piece = super().__new__(cls, text)
        piece.token_ids, piece.finish_reason = token_ids, finish_reason
        piece.stop_reason, piece.metrics = stop_reason, metrics
        return piece

    @property
    def text(self) -> str:
        """The piece as a plain string."""
        return str(self)
