"""Documents in shards on disk, as one sequence that is never in memory as a whole."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from codemill.data.document_shard import DocumentShard, open_shard
from codemill.data.packing import Document
from codemill.data.records import place
from codemill.data.segments import Segment

Int64 = npt.NDArray[np.int64]
_OPEN = 128  # shards that are mapped at a time


class CachedDocuments(Sequence[Document]):
    """The documents of shards, one shard for each segment.

    In memory are `lengths`, `learned` (tokens with a weight) and `is_text` [documents]. keys: what the shards were made
    from. empty: where the records are that have nothing to learn from, and why.
    """

    def __init__(self, paths: Sequence[Path], segments: Sequence[Segment]) -> None:
        """Raises BrokenShard for a shard that is cut short; their checksums are the cache's to verify."""
        self._paths, self._segments = list(paths), list(segments)
        self._open = lru_cache(_OPEN)(open_shard)
        shards = [open_shard(path) for path in self._paths]
        self._starts = np.cumsum([0, *map(len, shards)])
        self.lengths: Int64 = _joined([np.diff(shard.arrays["offsets"]) for shard in shards])
        self.learned: Int64 = _joined([shard.arrays["learned"] for shard in shards])
        self.is_text = _joined([shard.arrays["is_text"] for shard in shards]).astype(bool)
        self.keys = [path.stem for path in self._paths]
        self.input_bytes = sum(segment.size for segment in self._segments)
        self.records = sum(shard.header.records for shard in shards)
        self.empty = [
            (place(segment.pieces[piece], segment.pieces[piece].first_line + line), reason)
            for shard, segment in zip(shards, self._segments, strict=True)
            for piece, line, reason in shard.header.empty
        ]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        shard, within, _ = self._find(index)
        return shard.document(within)

    def __iter__(self) -> Iterator[Document]:
        for path in self._paths:
            shard = self._open(path)
            yield from (shard.document(i) for i in range(len(shard)))

    def where(self, index: int) -> str:
        """The file and line that a document came from."""
        shard, within, segment = self._find(index)
        piece = segment.pieces[shard.arrays["pieces"][within]]
        return place(piece, piece.first_line + int(shard.arrays["lines"][within]))

    def domain(self, index: int) -> str:
        """The domain of a document, "" if it has none."""
        shard, within, _ = self._find(index)
        return shard.header.domains[shard.arrays["domains"][within]]

    def _find(self, index: int) -> tuple[DocumentShard, int, Segment]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._open(self._paths[number]), index - int(self._starts[number]), self._segments[number]


def _joined(arrays: Sequence[npt.NDArray[np.int64]]) -> Int64:
    return np.concatenate([np.empty(0, np.int64), *arrays]).astype(np.int64)
