"""Best-fit-decreasing bin packing of millions of documents.

Documents of one length are placed together: of the bins with the least free space that holds such a document, each
takes as many as it holds before the next is touched, so the outcome is that of placing them one by one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codemill.errors import CodemillError

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Bins:
    """members [documents]: the documents' indices, bin after bin; offsets [bins + 1]: where each bin begins."""

    members: Int64
    offsets: Int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Int64:
        if index >= len(self):
            raise IndexError(index)
        return self.members[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[Int64]:
        return (self[i] for i in range(len(self)))


def fill_bins(lengths: Sequence[int] | Int64, capacity: int) -> Bins:
    """Assign documents to bins: longest first, each to the bin with the least free space that still holds it.

    Raises CodemillError for a length outside 1..capacity.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    _check_lengths(sizes, capacity)
    order = _stable_order(capacity - sizes)
    ends = np.flatnonzero(np.diff(sizes[order], append=0)) + 1  # where another length begins
    space = _FreeSpace(capacity)
    placed = np.empty(len(order), np.int64)
    start = 0
    for end in ends.tolist():
        space.place(int(sizes[order[start]]), placed[start:end])
        start = end
    members = order[_stable_order(placed)]
    return Bins(members, np.cumsum([0, *np.bincount(placed, minlength=space.num_bins)]))


class _FreeSpace:
    """The bins by the free space left in them, and which spaces occur at all as the bits of a number."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._bins: list[list[Int64]] = [[] for _ in range(capacity + 1)]  # the last is used first
        self._filled = 0
        self.num_bins = 0

    def place(self, length: int, out: Int64) -> None:
        """Place len(out) documents of this length; `out` gets the bin of each."""
        done = 0
        while done < len(out):
            candidates = self._filled >> length
            free = length + (candidates & -candidates).bit_length() - 1 if candidates else self._capacity
            each = free // length
            for bins in self._take(free, -(-(len(out) - done) // each), is_new=not candidates):
                count = min(len(bins) * each, len(out) - done)
                out[done : done + count] = np.repeat(bins, each)[:count]
                done += count
                whole, rest = divmod(count, each)
                self._put(free - each * length, bins[:whole])
                self._put(free - rest * length, bins[whole:])

    def _take(self, free: int, count: int, is_new: bool) -> Iterator[Int64]:
        """Up to `count` bins with so much free space, in runs, or new ones."""
        if is_new:
            self.num_bins += count
            yield np.arange(self.num_bins - count, self.num_bins)
            return
        stack = self._bins[free]
        while stack and count:
            top = stack.pop()
            taken, left = top[-count:], top[:-count]
            stack += [left] if len(left) else []
            count -= len(taken)
            if not stack:
                self._filled ^= 1 << free
            yield taken[::-1]

    def _put(self, free: int, bins: Int64) -> None:
        if len(bins) and free:
            self._bins[free].append(bins)
            self._filled |= 1 << free


def _stable_order(values: Int64) -> Int64:
    """`argsort` of numbers that are not negative, 16 bits at a time: NumPy has a radix sort for those."""
    order = np.arange(len(values))
    for shift in range(0, int(values.max(initial=0)).bit_length(), 16):
        digits = (values[order] >> shift).astype(np.uint16)  # the lowest 16 bits of them
        order = order[np.argsort(digits, kind="stable")]
    return order


def _check_lengths(lengths: Int64, capacity: int) -> None:
    wrong = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if len(wrong):
        raise CodemillError(
            f"document {wrong[0]} has {lengths[wrong[0]]} tokens, outside 1..{capacity}; drop or split it first"
        )
