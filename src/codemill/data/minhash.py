"""MinHash with locality-sensitive hashing: which of many known sets is nearly the same as a new one.

Signatures after Broder 1997, bands after Indyk and Motwani 1998, as in Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3. Candidates are compared exactly afterwards, so the hashing decides about speed and, very
rarely, about recall, never about precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codemill.data.shingles import Hashes

_BANDS, _ROWS = 32, 4  # sets of Jaccard similarity 0.7 share a band with probability 0.9998, 0.5 with 0.87
_BLOCK = 4096  # set members hashed at a time


@dataclass(frozen=True)
class Neighbour:
    """A known set and how similar it is: the Jaccard index, 0 to 1."""

    key: int
    similarity: float


class MinHashIndex:
    """Known sets of hashes, sorted and without repetition; a set's key is its place among them."""

    def __init__(self, sets: Sequence[Hashes], threshold: float) -> None:
        """threshold: the Jaccard index from which on two sets are near-duplicates."""
        self._sets = list(sets)
        self._threshold = threshold
        self._members = np.unique(np.concatenate([*self._sets, np.empty(0, np.uint64)]))
        draw = np.random.default_rng(1)  # fixed: the same data gives the same findings
        self._factors = draw.integers(1, 2**63, _BANDS * _ROWS, np.uint64) * np.uint64(2) + np.uint64(1)
        self._offsets = draw.integers(0, 2**63, _BANDS * _ROWS, np.uint64)
        self._buckets: dict[tuple[int, bytes], list[int]] = {}
        for key, members in enumerate(self._sets):
            for bucket in self._bands(members):
                self._buckets.setdefault(bucket, []).append(key)

    @property
    def largest(self) -> int:
        """Members of the largest known set."""
        return max(map(len, self._sets), default=0)

    def nearest(self, members: Hashes) -> Neighbour | None:
        """The most similar known set, if it reaches the threshold; the first of several that are as similar."""
        return max(self.near(members), key=lambda neighbour: neighbour.similarity, default=None)

    def near(self, members: Hashes) -> list[Neighbour]:
        """All known sets that reach the threshold, but for the few that the hashing overlooks, by their keys."""
        if not self._may_match(members):
            return []
        candidates = {key for bucket in self._bands(members) for key in self._buckets.get(bucket, ())}
        found = (Neighbour(key, jaccard(members, self._sets[key])) for key in sorted(candidates))
        return [neighbour for neighbour in found if neighbour.similarity >= self._threshold]

    def _may_match(self, members: Hashes) -> bool:
        """False if too few members are in any known set for the threshold: nearly always, and much the cheaper test."""
        return len(members) > 0 and _shared(members, self._members) >= self._threshold * len(members)

    def _bands(self, members: Hashes) -> list[tuple[int, bytes]]:
        signature = self.signature(members)
        return [(band, signature[band * _ROWS : (band + 1) * _ROWS].tobytes()) for band in range(_BANDS)]

    def signature(self, members: Hashes) -> Hashes:
        """The least of each random function over the members. Equal entries, as a share, estimate the Jaccard index."""
        least = np.full(_BANDS * _ROWS, np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(members), _BLOCK):
            block = members[start : start + _BLOCK, None] * self._factors + self._offsets
            least = np.minimum(least, (block >> np.uint64(16)).min(axis=0))
        return least


def jaccard(a: Hashes, b: Hashes) -> float:
    """The size of the intersection over that of the union, of sorted arrays without repetition."""
    shared = _shared(a, b) if len(a) <= len(b) else _shared(b, a)
    union = len(a) + len(b) - shared
    return shared / union if union else 0.0


def _shared(few: Hashes, many: Hashes) -> int:
    """How many of `few` are in `many`, which is sorted."""
    if len(many) == 0:
        return 0
    places = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return int(np.count_nonzero(many[places] == few))
