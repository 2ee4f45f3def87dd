"""Documents set aside for validation, chosen by their content: copies of a document stay together."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt

from codemill.data.packing import Document

Item = TypeVar("Item")
KNOWN = ("lengths", "learned")
Int64 = npt.NDArray[np.int64]


class Subset(Sequence[Item]):
    """Some items of a sequence, which is not copied."""

    def __init__(self, items: Sequence[Item], indices: Int64) -> None:
        self._items, self._indices = items, indices

    def __getattr__(self, name: str) -> Int64:
        """What the items know of themselves as an array, such as `lengths`, of these."""
        if name not in KNOWN:
            raise AttributeError(name)
        values: Int64 = getattr(self._items, name)
        return values[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> "Subset[Item]": ...
    def __getitem__(self, index: "int | slice") -> "Item | Subset[Item]":
        if isinstance(index, slice):
            return Subset(self._items, self._indices[index])
        return self._items[int(self._indices[index])]


def split_held_out(
    documents: Sequence[Document], fraction: float, seed: int = 0
) -> tuple[Subset[Document], Subset[Document]]:
    """Documents to train on, and about `fraction` of all to validate with; equal documents are on the same side.

    So are the pieces of one that was split, where the sequence says by `sources` whose they are.
    """
    draws = np.fromiter((_draw(document, seed) for document in documents), np.float64, len(documents))
    sources = getattr(documents, "sources", None)
    if sources is not None:
        _, firsts, of_each = np.unique(sources, return_index=True, return_inverse=True)
        draws = draws[firsts][of_each]
    held_out = draws < fraction
    return Subset(documents, np.flatnonzero(~held_out)), Subset(documents, np.flatnonzero(held_out))


def _draw(document: Document, seed: int) -> float:
    """A number from 0 to 1 that the tokens determine."""
    key = seed.to_bytes(8, "little", signed=True)
    digest = hashlib.blake2b(np.ascontiguousarray(document.ids).tobytes(), digest_size=8, key=key).digest()
    return int.from_bytes(digest, "little") / 2**64
