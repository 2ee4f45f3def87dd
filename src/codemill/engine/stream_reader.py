"""What is new of a request that is streamed. No torch here."""

from codemill.engine.outputs import StreamPiece
from codemill.engine.request import Request


class StreamReader:
    """Cuts the output of a request with one sample into pieces. The caller keeps the engine from stepping meanwhile."""

    def __init__(self, request: Request) -> None:
        self._request = request
        (self._sequence,) = request.sequences
        self._num_pieces = self._num_tokens = 0
        self.is_done = False

    @property
    def has_news(self) -> bool:
        """Whether `read` has something to give."""
        sequence = self._sequence
        return len(sequence.text_pieces) > self._num_pieces or sequence.finish_reason is not None

    def read(self) -> StreamPiece | None:
        """All that is new, with the metrics if it is the last; None if nothing is. Raises the request's error."""
        if not self.has_news:
            return None
        sequence = self._sequence
        self._request.raise_error()
        text = "".join(sequence.text_pieces[self._num_pieces :])
        token_ids = tuple(sequence.token_ids[self._num_tokens :])
        self._num_pieces, self._num_tokens = len(sequence.text_pieces), len(sequence.token_ids)
        self.is_done = sequence.finish_reason is not None
        metrics = self._request.metrics() if self.is_done else None
        return StreamPiece(text, token_ids, sequence.finish_reason, sequence.stop_reason, metrics)
