"""Packed rows of documents that are not in memory: each row is built when asked for, or all are written to disk."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codemill.data.best_fit import Bins, fill_bins
from codemill.data.document_shard import learned_tokens
from codemill.data.packing import Document, PackedRows, build_rows
from codemill.data.token_file import load_rows, rows_being_written

Int64 = npt.NDArray[np.int64]
_ROWS = 256  # are built at a time to be written


class PackedDocuments:
    """Documents of 1..capacity tokens in rows of `capacity` places, in the fewest that best fit finds.

    packing: without it each row holds one document. In memory is one number for each document.
    """

    def __init__(self, documents: Sequence[Document], capacity: int, pad_id: int, packing: bool = True) -> None:
        """Raises CodemillError naming a document whose length is outside 1..capacity."""
        self.documents, self.capacity, self._pad_id = documents, capacity, pad_id
        lengths = document_lengths(documents)
        self.bins = fill_bins(lengths, capacity)
        if not packing:
            self.bins = Bins(np.arange(len(lengths)), np.arange(len(lengths) + 1))
        self.num_tokens = int(lengths.sum())

    def __len__(self) -> int:
        return len(self.bins)

    @property
    def fill(self) -> float:
        """Share of the places that hold a token of a document."""
        return self.num_tokens / max(len(self) * self.capacity, 1)

    def take(self, rows: Sequence[int]) -> PackedRows:
        """These rows."""
        members = [[self.documents[int(index)] for index in self.bins[row]] for row in rows]
        return build_rows(members, self.capacity, self._pad_id)

    def save(self, path: str | Path, progress: Callable[[int], None] = lambda _: None) -> PackedRows:
        """Write all rows to a file, atomically, and map it into memory. progress: called with numbers of rows."""
        with rows_being_written(path, len(self), self.capacity) as target:
            for start in range(0, len(self), _ROWS):
                rows = range(start, min(start + _ROWS, len(self)))
                target.write(self.take(rows))
                progress(len(rows))
        return load_rows(path)


def document_lengths(documents: Sequence[Document]) -> Int64:
    """Tokens of each document [documents], without reading them where the sequence knows."""
    known = getattr(documents, "lengths", None)
    if known is None:
        known = [len(document) for document in documents]
    return np.asarray(known, dtype=np.int64)


def num_learned(documents: Sequence[Document]) -> int:
    """Tokens with a loss weight in all documents, without reading them where the sequence knows."""
    known = getattr(documents, "learned", None)
    return sum(map(learned_tokens, documents)) if known is None else int(known.sum())
