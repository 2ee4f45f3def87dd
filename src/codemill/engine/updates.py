"""What a request that is being served reports while it runs. No torch here."""

from dataclasses import dataclass

from codemill.engine.outputs import FinishReason, RequestMetrics, RequestOutput
from codemill.errors import CodemillError


@dataclass(frozen=True)
class Progress:
    """Where a request stands before its first token.

    num_ahead: sequences before it in the queue, None once it runs. num_computed: tokens of its prompt that are in the
    cache, of num_prompt_tokens.
    """

    num_ahead: int | None
    num_computed: int
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class StreamUpdate:
    """News of a request: either its `progress`, without any text, or more of the sample `index`.

    text, token_ids: what is new; the texts of a sample join to its whole text, and so do the ids. As in `StreamPiece`,
    ids may come later than they were made, since an update has text or ends its sample. logprobs, top_logprobs: of
    those ids, as in `CompletionOutput`. finish_reason, stop_reason: in the last update of each sample. output: the
    whole result with its metrics, in the last update of the request.
    """

    progress: Progress | None = None
    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    output: RequestOutput | None = None

    @property
    def metrics(self) -> RequestMetrics | None:
        """Counts and times of the request, in its last update."""
        return None if self.output is None else self.output.metrics


# What arrives for a request: news, or the error that ended it. The string is the request's id.
Event = tuple[str, StreamUpdate | CodemillError]
