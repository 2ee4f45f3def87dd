"""Token ids to text as they arrive: characters split over tokens are held back until they are whole."""

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol


class TokenBytes(Protocol):
    """What a detokenizer needs of a tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class Detokenizer:
    """Incremental decoder of one sequence of token ids.

    The concatenation of every `feed` and of `finish` equals `Tokenizer.decode` of all the ids, however they were
    split. Bytes that can never become a character turn into U+FFFD.
    """

    def __init__(self, tokenizer: TokenBytes, skip_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: int | Sequence[int] | Iterable[int]) -> str:
        """Take one id or several; return the text that has become certain (often empty)."""
        if isinstance(ids, int):  # the usual case, once for each token that is generated
            return "" if ids in self._skip else self._decoder.decode(self._tokenizer.token_bytes(ids))
        raw = b"".join(self._tokenizer.token_bytes(i) for i in ids if i not in self._skip)
        return self._decoder.decode(raw)

    def finish(self) -> str:
        """Flush: an unfinished character becomes U+FFFD. The detokenizer is then ready for another sequence."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
