"""Modules cut into chunks of a bounded number of tokens, at the beginning of a definition where possible."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from codemill.data.corpus import Module
from codemill.data.packing import Int32

ENCODE_BATCH = 4096
_TOP_LEVEL = ("def ", "class ", "async def ", "@")
_METHOD = tuple("    " + start for start in _TOP_LEVEL)


@dataclass(frozen=True)
class Chunk:
    """A run of whole lines of a module; `is_last` says that the module ends with it."""

    text: str
    is_last: bool


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Int32]:
    """Token ids of every text, in batches so that memory stays small. The texts hold no special tokens."""
    ids: list[Int32] = []
    for start in range(0, len(texts), ENCODE_BATCH):
        batch = tokenizer.encode_batch_fast(list(texts[start : start + ENCODE_BATCH]), add_special_tokens=False)
        ids.extend(np.array(encoding.ids, dtype=np.int32) for encoding in batch)
    return ids


def chunk_modules(tokenizer: Tokenizer, modules: Iterable[Module], max_tokens: int) -> list[Chunk]:
    """Chunks of at most `max_tokens` tokens (counted line by line), in the order of the modules.

    A chunk ends before a top-level definition if one lies in its second half, else before a method, else
    before any line. A single line of more tokens stays whole.
    """
    return [chunk for module in modules for chunk in _chunks(tokenizer, module.text, max_tokens)]


def _chunks(tokenizer: Tokenizer, text: str, max_tokens: int) -> Iterator[Chunk]:
    lines = text.splitlines(keepends=True)
    ends = np.cumsum([len(ids) for ids in encode_texts(tokenizer, lines)])
    start = 0
    while start < len(lines):
        used = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, used + max_tokens, side="right")), start + 1)
        if stop < len(lines):
            stop = _best_cut(lines, start, stop)
        yield Chunk("".join(lines[start:stop]), is_last=stop >= len(lines))
        start = stop


def _best_cut(lines: Sequence[str], start: int, stop: int) -> int:
    """The line to end before, in the second half of start..stop."""
    candidates = range(stop, start + (stop - start) // 2, -1)
    for openings in (_TOP_LEVEL, _METHOD):
        for cut in candidates:
            if lines[cut].startswith(openings) and not _is_decorated(lines, cut):
                return cut
    return stop


def _is_decorated(lines: Sequence[str], index: int) -> bool:
    return lines[index - 1].lstrip().startswith("@")
