"""Where the batches of a run come from."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from codemill.data.packing import PackedRows
from codemill.train.batch import Batch
from codemill.train.config import LoopConfig


class Rows(Protocol):
    """Packed rows, in memory or built when they are asked for."""

    def __len__(self) -> int: ...
    def take(self, rows: Sequence[int]) -> PackedRows:
        """These rows."""
        ...


class BatchSource(Protocol):
    """Gives the batches of each step. They depend on the step and the seed alone: a resumed run needs no more."""

    def micro_batches(self, step: int) -> Sequence[Batch]:
        """What step number `step`, from 0, accumulates over."""
        ...


class PackedSource:
    """Packed rows in an order of their own in each epoch.

    `rank` and `num_processes`: every process takes its share of each step's rows.
    """

    def __init__(self, rows: Rows, loop: LoopConfig, rank: int = 0, num_processes: int = 1) -> None:
        self.rows, self.loop = rows, loop
        self._share = slice(rank, None, num_processes)

    def micro_batches(self, step: int) -> list[Batch]:
        size = self.loop.rows_per_step
        indices = row_order(len(self.rows), self.loop.seed, step * size, size)[self._share]
        return _batches(self.rows, indices, self.loop.rows_per_micro_batch)


def validation_batches(rows: Rows, loop: LoopConfig) -> list[Batch]:
    """All rows in order."""
    return _batches(rows, range(len(rows)), loop.rows_per_micro_batch)


def _batches(rows: Rows, indices: Sequence[int], size: int) -> list[Batch]:
    return [Batch.of(rows.take(indices[start : start + size])) for start in range(0, len(indices), size)]


def row_order(num_rows: int, seed: int, start: int, count: int) -> list[int]:
    """Row indices of draws start..start+count: a new permutation each epoch, all a function of the seed."""
    draws = (divmod(draw, num_rows) for draw in range(start, start + count))
    return [int(_permutation(num_rows, seed, epoch)[place]) for epoch, place in draws]


@lru_cache(maxsize=2)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_rows)
