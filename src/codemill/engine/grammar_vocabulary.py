"""A checkpoint's vocabulary as llguidance wants it. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codemill.chat.tokenizer import Tokenizer
from codemill.errors import CodemillError, UsageError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MAX_TOKEN_BYTES = 1024  # llguidance panics at longer tokens; a grammar never allows them


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Token ids, and the same as a mask int32 [W]."""

    ids: frozenset[int]
    bits: NDArray[np.int32]


class GrammarVocabulary:
    """The vocabulary of a model with `vocab_size` rows. Control tokens are no text: only their ids can name them."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        """Raises CodemillError if llguidance is not installed, UsageError if there is no end-of-text id."""
        if not eos_token_ids:
            raise UsageError("structured output needs an end-of-text token, and this checkpoint's tokenizer has none")
        self.control_tokens = tokenizer.control_tokens
        self._num_words = -(-vocab_size // 32)
        self._source = _TokenSource(tokenizer, vocab_size, eos_token_ids)
        self.tokenizer = _load(self._source, vocab_size, eos_token_ids)
        self.token_ids = frozenset(i for i, token in enumerate(self._source.tokens) if token)
        self.eos = self.token_set(eos_token_ids)
        self.text = self.token_set(self.token_ids - eos_token_ids)

    def token_set(self, token_ids: frozenset[int]) -> TokenSet:
        """A set of ids, and its mask."""
        allowed = np.zeros(self._num_words * 32, dtype=np.uint8)
        allowed[list(token_ids)] = 1
        return TokenSet(token_ids, np.packbits(allowed, bitorder="little").view(np.int32))

    def decode(self, token_id: int) -> str:
        """The text of a token, for messages."""
        return self._source.tokens[token_id].decode("utf-8", "replace") if token_id in self.token_ids else ""


class _TokenSource:
    """What llguidance asks of a tokenizer: the bytes of each token, and the tokens of a text."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self.tokens = [_usable(tokenizer.token_bytes(i)) for i in range(vocab_size)]
        self.special_token_ids = sorted(i for i in tokenizer.control_tokens.values() if i < vocab_size)
        self.eos_token_id = min(eos_token_ids)
        self.bos_token_id = None
        self._tokenizer = tokenizer
        self._id_of_byte = {token[0]: i for i, token in enumerate(self.tokens) if len(token) == 1}

    def __call__(self, text: str) -> list[int]:
        """Ids whose bytes are exactly those of `text`, also where the tokenizer would normalise it."""
        if not isinstance(text, str):
            raise TypeError("text must be str")  # llguidance tries whether bytes are welcome
        ids = self._tokenizer.encode(text)
        data = text.encode()
        if max(ids, default=0) < len(self.tokens) and b"".join(self.tokens[i] for i in ids) == data:
            return ids
        return [self._id_of_byte[byte] for byte in data]


def _usable(token: bytes) -> bytes:
    return token if len(token) <= MAX_TOKEN_BYTES else b""


def _load(source: _TokenSource, vocab_size: int, eos_token_ids: frozenset[int]) -> LLTokenizer:
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as error:
        raise CodemillError("structured output needs llguidance; pip install 'codemill[serve]'") from error
    return LLTokenizer(TokenizerWrapper(source), n_vocab=vocab_size, eos_token=sorted(eos_token_ids))
