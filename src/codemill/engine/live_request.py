"""A request that an engine's thread works on, and what of it was reported. No torch here."""

from codemill.engine.request import Request
from codemill.engine.sequence import Sequence
from codemill.engine.updates import Progress, StreamUpdate


class LiveRequest:
    """A request on its way. deadline: the time of `perf_counter` at which it ends, whatever it has by then.

    wants_updates: report new text as it comes, not only the whole result.
    """

    def __init__(self, request_id: str, request: Request, deadline: float | None, wants_updates: bool) -> None:
        self.request_id = request_id
        self.request = request
        self.deadline = deadline
        self._wants_updates = wants_updates
        self._progress: Progress | None = None
        self._num_reported = dict.fromkeys(request.sequences, (0, 0))  # text pieces, tokens
        self._unfinished = set(request.sequences)

    @property
    def has_started(self) -> bool:
        """Whether a pass has ever worked on it."""
        return any(sequence.start_time for sequence in self.request.sequences)

    @property
    def is_reported(self) -> bool:
        """Whether the end of each of its sequences was reported."""
        return not self._unfinished

    @property
    def has_tokens(self) -> bool:
        return any(sequence.token_ids for sequence in self.request.sequences)

    def progress_update(self, num_ahead: int | None) -> StreamUpdate | None:
        """Where the request stands, if it is not where it stood; `num_ahead` as in `Progress`."""
        sequence = self.request.sequences[0]
        progress = Progress(num_ahead, sequence.cached.num_computed, len(sequence.prompt_token_ids))
        if progress == self._progress:
            return None
        self._progress = progress
        return StreamUpdate(progress=progress)

    def update(self, sequence: Sequence) -> StreamUpdate | None:
        """What is new of one of its sequences, if it has text or ends; the last to end brings the whole result."""
        is_finished = sequence.finish_reason is not None
        if is_finished:
            self._unfinished.discard(sequence)
        output = None if self._unfinished else self.request.output()
        if not self._wants_updates:
            return None if output is None else StreamUpdate(output=output)
        num_pieces, num_tokens = self._num_reported[sequence]
        text = "".join(sequence.text_pieces[num_pieces:])
        if not text and not is_finished:
            return None
        self._num_reported[sequence] = (len(sequence.text_pieces), len(sequence.token_ids))
        wants_logprobs = sequence.params.logprobs is not None
        return StreamUpdate(
            index=sequence.index,
            text=text,
            token_ids=tuple(sequence.token_ids[num_tokens:]),
            logprobs=sequence.logprobs[num_tokens:] if wants_logprobs else None,
            top_logprobs=sequence.top_logprobs[num_tokens:] if wants_logprobs else None,
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
            output=output,
        )
