"""Prompt lookup: what followed the same tokens before may follow them again (Saxena 2023). No torch here."""

from collections.abc import Sequence


class NgramIndex:
    """Where each n-gram of a growing list of tokens last ended; a token costs a dictionary entry for each length."""

    def __init__(self, min_match: int, max_match: int) -> None:
        self._sizes = range(max_match, min_match - 1, -1)
        self._ends: dict[tuple[int, ...], int] = {}
        self._num_indexed = 0

    def propose(self, token_ids: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that followed the latest earlier occurrence of the longest possible ending.

        `token_ids` begins as it did the last time.
        """
        self._index(token_ids)
        for size in self._sizes:
            end = self._ends.get(tuple(token_ids[-size:]))
            if end is not None:
                return self._continue(token_ids, end, count)
        return []

    def _continue(self, token_ids: Sequence[int], start: int, count: int) -> list[int]:
        """Tokens from `start` on; where they run into the end, they go on with what was just proposed."""
        found = list(token_ids[start : start + count])
        period = len(token_ids) - start
        while len(found) < count:
            found.append(found[len(found) - period])
        return found

    def _index(self, token_ids: Sequence[int]) -> None:
        """Index everything but the ending itself, which must not be found as its own earlier occurrence."""
        for end in range(max(self._num_indexed, 1), len(token_ids)):
            for size in self._sizes:
                if size <= end:
                    self._ends[tuple(token_ids[end - size : end])] = end
        self._num_indexed = len(token_ids)
