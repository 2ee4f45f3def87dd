"""Which replica a prompt goes to: the one that knows most of its beginning, unless that one is far busier. No torch."""

from collections import OrderedDict
from collections.abc import Sequence

MAX_NAMES = 1 << 16  # blocks remembered of each replica: about a million tokens
MAX_EXTRA = 4  # so many more requests than the least busy replica has are worth a prefix that is cached


class PrefixRouter:
    """Remembers the names of the prompt blocks that each replica was given; see `prefix_hash`.

    What a replica has evicted is not known here, so a guess may be wrong; that costs time and nothing else.
    """

    def __init__(self, num_replicas: int) -> None:
        self._known: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in range(num_replicas)]

    def choose(self, names: Sequence[bytes], loads: Sequence[int | None]) -> int:
        """The replica for a prompt with blocks of these names.

        loads: unfinished requests of each replica, None for one that may not be chosen; there must be one that may.
        """
        usable = [(replica, load) for replica, load in enumerate(loads) if load is not None]
        most = min(load for _, load in usable) + MAX_EXTRA
        candidates = [(self._num_known(replica, names), -load, -replica) for replica, load in usable if load <= most]
        chosen = -max(candidates)[2]
        self._remember(chosen, names)
        return chosen

    def forget(self, replica: int) -> None:
        """The replica has lost its cache."""
        self._known[replica].clear()

    def _num_known(self, replica: int, names: Sequence[bytes]) -> int:
        known = self._known[replica]
        return next((number for number, name in enumerate(names) if name not in known), len(names))

    def _remember(self, replica: int, names: Sequence[bytes]) -> None:
        known = self._known[replica]
        for name in reversed(names):  # the beginning is used last, and so forgotten last
            known[name] = None
            known.move_to_end(name)
        while len(known) > MAX_NAMES:
            known.popitem(last=False)
