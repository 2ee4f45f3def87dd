"""Which tokens of a forward pass belong to which sequence, and where each sequence's keys and values lie.

A pass computes new tokens of several sequences, one sequence after the other in the flattened tokens [N]. The cache is
cut into blocks of `block_size` slots; a sequence's block table names its blocks in order, so position p lies in slot
`block_table[p // block_size] * block_size + p % block_size`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """The new tokens of one sequence. `num_past` tokens of it are in the cache already.

    state_slot: where its recurrent and conv state lies. num_uncertain: so many of the new tokens, at the end, are
    drafts that may be taken back, so the state must not advance over them. checkpoints: (n, slot) pairs; the state
    after n of the new tokens is copied to `slot`.
    """

    num_new: int
    num_past: int
    block_table: Sequence[int]
    state_slot: int = 0
    num_uncertain: int = 0
    checkpoints: tuple[tuple[int, int], ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the sequence after this pass."""
        return self.num_past + self.num_new

    @property
    def is_single(self) -> bool:
        """Whether this is plain decode: one token, which no draft and no checkpoint comes with."""
        return self.num_new == 1 and not self.num_uncertain and not self.checkpoints

    @property
    def cuts(self) -> list[int]:
        """Where a recurrence over the new tokens has to stop: at checkpoints, before drafts, and at both ends."""
        return sorted({0, self.num_new, self.num_new - self.num_uncertain, *(after for after, _ in self.checkpoints)})

    def checkpoints_after(self, num_tokens: int) -> list[int]:
        """The slots that want the state after so many new tokens."""
        return [slot for after, slot in self.checkpoints if after == num_tokens]


@dataclass(frozen=True)
class Single:
    """The segments of plain decode: their rows in the flattened tokens [n], and their state slots [n]."""

    rows: Tensor
    state_slots: Tensor


@dataclass(frozen=True)
class Segments:
    """All segments of a pass; `device` is where index tensors are wanted."""

    each: tuple[Segment, ...]
    block_size: int
    device: torch.device

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each segment begins in the flattened tokens."""
        return (0, *accumulate(segment.num_new for segment in self.each))[:-1]

    @cached_property
    def slot_mapping(self) -> Tensor:
        """The cache slot of every new token, [N]."""
        slots: list[int] = []
        for segment in self.each:
            for first, count in self.runs(segment.block_table, segment.num_past, segment.length):
                slots += range(first, first + count)
        return torch.tensor(slots, device=self.device)

    @cached_property
    def single(self) -> Single | None:
        """The segments that are plain decode, if there are several."""
        chosen = [i for i, segment in enumerate(self.each) if segment.is_single]
        if len(chosen) < 2:
            return None
        rows = torch.tensor([self.starts[i] for i in chosen], device=self.device)
        return Single(rows, torch.tensor([self.each[i].state_slot for i in chosen], device=self.device))

    def runs(self, block_table: Sequence[int], start: int, stop: int) -> list[tuple[int, int]]:
        """Slots of positions `start` to `stop` as runs (first slot, count): neighbouring blocks are one run."""
        size, runs = self.block_size, list[tuple[int, int]]()
        while start < stop:
            offset = start % size
            first, count = block_table[start // size] * size + offset, min(size - offset, stop - start)
            if runs and sum(runs[-1]) == first:
                runs[-1] = (runs[-1][0], runs[-1][1] + count)
            else:
                runs.append((first, count))
            start += count
        return runs
