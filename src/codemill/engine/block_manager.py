"""The blocks of the KV cache: which are free, who shares which, and which hold a known prefix. No torch here."""

from collections import OrderedDict
from collections.abc import Callable, Iterable


class BlockManager:
    """Blocks 0 to num_blocks - 1, counted references, and names by content for those whose content may be reused.

    A block that nobody uses any more stays findable by its name until the space is needed; the one that was used least
    recently goes first.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[bytes], None] | None = None) -> None:
        self.num_blocks = num_blocks
        self._on_evict = on_evict
        self._references = [0] * num_blocks
        self._names: list[bytes | None] = [None] * num_blocks
        self._by_name: dict[bytes, int] = {}
        self._blank = list(range(num_blocks - 1, -1, -1))  # popped from the end: neighbours stay neighbours
        self._kept: OrderedDict[int, None] = OrderedDict()  # free but named, least recently used first

    @property
    def num_free(self) -> int:
        """Blocks that nobody uses, those kept for reuse included."""
        return len(self._blank) + len(self._kept)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each; the caller has checked that so many are free."""
        blocks = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def find(self, name: bytes) -> int | None:
        """The block of that content, if it is still there."""
        return self._by_name.get(name)

    def share(self, blocks: Iterable[int]) -> None:
        """One more reference to each of these named blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._kept[block]
            self._references[block] += 1

    def name(self, block: int, name: bytes) -> None:
        """Make the content of a block in use findable; the first block of a name keeps it."""
        if name not in self._by_name and self._names[block] is None:
            self._names[block] = name
            self._by_name[name] = block

    def release(self, blocks: list[int]) -> None:
        """Give up one reference to each. The last blocks of a sequence are the first to be evicted later."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._names[block] is None:
                    self._blank.append(block)
                else:
                    self._kept[block] = None

    def forget_all(self) -> None:
        """Drop all names: the contents are no longer what they say, as when weights change."""
        self._names = [None] * self.num_blocks
        self._by_name.clear()
        self._blank.extend(self._kept)
        self._kept.clear()

    def _evict(self) -> int:
        block, _ = self._kept.popitem(last=False)
        name = self._names[block]
        assert name is not None
        self._names[block] = None
        del self._by_name[name]
        if self._on_evict is not None:
            self._on_evict(name)
        return block
