"""Slots for recurrent and conv states: one for each running sequence, the others for checkpoints. No torch here."""

from collections import OrderedDict


class StatePool:
    """Slots 0 to num_slots - 1. A checkpoint is named like the block that ends where it was taken.

    A recurrent state cannot be cut back like a KV cache, so a prefix is reusable only where a checkpoint was kept.
    Running sequences come first: the checkpoint that was used least recently makes room for them.
    """

    def __init__(self, num_slots: int, max_running: int) -> None:
        self.num_slots = num_slots
        self._max_running = max_running
        self._num_running = 0
        self._free = list(range(num_slots - 1, -1, -1))
        self._checkpoints: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._pending: dict[bytes, int] = {}

    @property
    def num_used(self) -> int:
        return self.num_slots - len(self._free)

    @property
    def num_checkpoints(self) -> int:
        return len(self._checkpoints)

    def acquire(self) -> int:
        """A slot for a sequence that starts to run, of which there are at most `max_running`."""
        self._num_running += 1
        return self._take()

    def release(self, slot: int) -> None:
        """The sequence of that slot runs no more."""
        self._num_running -= 1
        self._free.append(slot)

    def find(self, name: bytes) -> int | None:
        """The slot of a checkpoint, which thereby counts as used."""
        slot = self._checkpoints.get(name)
        if slot is not None:
            self._checkpoints.move_to_end(name)
        return slot

    def has(self, name: bytes) -> bool:
        return name in self._checkpoints or name in self._pending

    def reserve(self, name: bytes) -> int | None:
        """A slot that the coming pass will fill; None if sequences that run, or are about to, need them all.

        It becomes findable, and may be evicted, after `settle` only: until then a second use of the slot in the same
        pass would mix up two states.
        """
        if len(self._free) + len(self._checkpoints) <= self._max_running - self._num_running:
            return None
        slot = self._pending[name] = self._take()
        return slot

    def settle(self) -> None:
        """The pass is done: what was reserved is there."""
        self._checkpoints.update(self._pending)
        self._pending.clear()

    def cancel(self) -> None:
        """The pass failed: what was reserved was not filled."""
        self._free += self._pending.values()
        self._pending.clear()

    def settle_one(self, name: bytes, keep: bool) -> None:
        """A reserved slot was filled at once, outside a pass; without `keep` it is given back."""
        slot = self._pending.pop(name)
        if keep:
            self._checkpoints[name] = slot
        else:
            self._free.append(slot)

    def drop(self, name: bytes) -> None:
        """Give up a checkpoint, if it is there."""
        slot = self._checkpoints.pop(name, None)
        if slot is not None:
            self._free.append(slot)

    def forget_all(self) -> None:
        """Drop all checkpoints."""
        self._free += [*self._checkpoints.values(), *self._pending.values()]
        self._checkpoints.clear()
        self._pending.clear()

    def _take(self) -> int:
        return self._free.pop() if self._free else self._checkpoints.popitem(last=False)[1]
