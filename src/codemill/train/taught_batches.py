"""Batches whose documents have teachers: each row holds those of one. Shapes: R rows, T tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codemill.data.best_fit import fill_bins
from codemill.data.packed_documents import document_lengths
from codemill.data.packing import Document, build_rows
from codemill.train.batch import Batch
from codemill.train.config import LoopConfig
from codemill.train.source import row_order

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TaughtBatch(Batch):
    """teachers [R]: which teacher each row has."""

    teachers: Tensor

    def taught_by(self, teacher: int) -> tuple[Tensor, Batch]:
        """The rows of one teacher: which they are, bool [R], and what is in them."""
        rows = self.teachers == teacher
        tensors = self.input_ids, self.position_ids, self.document_ids, self.weights
        return rows, Batch(*(tensor[rows] for tensor in tensors))


class TaughtDocuments:
    """Documents in rows of `capacity` places, each row those of one teacher; one document a row without `packing`."""

    def __init__(
        self, documents: Sequence[Document], teachers: Sequence[int], capacity: int, pad_id: int, packing: bool = True
    ) -> None:
        """teachers [documents]: the teacher of each."""
        self.documents, self.capacity, self._pad_id = documents, capacity, pad_id
        self._lengths, ids = document_lengths(documents), np.asarray(teachers, np.int64)
        self.bins: list[Int64] = []
        for teacher in np.unique(ids):
            members = np.flatnonzero(ids == teacher)
            bins = fill_bins(self._lengths[members], capacity) if packing else np.arange(len(members))[:, None]
            self.bins += [members[each] for each in bins]
        self.teachers = np.array([ids[each[0]] for each in self.bins], np.int64)

    def __len__(self) -> int:
        return len(self.bins)

    @property
    def num_tokens(self) -> int:
        return int(self._lengths.sum())

    def batches(self, rows: Sequence[int], size: int) -> list[TaughtBatch]:
        """These rows, `size` in a batch, those of one teacher beside each other."""
        ordered = sorted(rows, key=lambda row: int(self.teachers[row]))
        return [self._batch(ordered[start : start + size]) for start in range(0, len(ordered), size)]

    def _batch(self, rows: Sequence[int]) -> TaughtBatch:
        members = [[self.documents[int(index)] for index in self.bins[row]] for row in rows]
        batch = Batch.of(build_rows(members, self.capacity, self._pad_id))
        return TaughtBatch(**vars(batch), teachers=torch.from_numpy(self.teachers[np.asarray(rows, np.int64)]))


class TaughtSource:
    """Rows in an order of their own in each epoch; see `PackedSource`."""

    def __init__(self, rows: TaughtDocuments, loop: LoopConfig, rank: int = 0, num_processes: int = 1) -> None:
        self.rows, self.loop = rows, loop
        self._share = slice(rank, None, num_processes)

    def micro_batches(self, step: int) -> list[TaughtBatch]:
        size = self.loop.rows_per_step
        indices = row_order(len(self.rows), self.loop.seed, step * size, size)[self._share]
        return self.rows.batches(indices, self.loop.rows_per_micro_batch)
