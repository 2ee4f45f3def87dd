"""The block manager beside a naive one: lists, searched from one end to the other."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from codemill.engine.block_manager import BlockManager


@dataclass
class NaiveBlocks:
    """References as a list of holders; names of blocks; and the order in which unused named blocks were given up."""

    num_blocks: int
    holders: dict[int, int] = field(default_factory=dict)
    names: dict[int, bytes] = field(default_factory=dict)
    given_up: list[int] = field(default_factory=list)

    @property
    def blank(self) -> set[int]:
        return {b for b in range(self.num_blocks) if b not in self.holders and b not in self.given_up}

    def release(self, block: int) -> None:
        self.holders[block] -= 1
        if not self.holders[block]:
            del self.holders[block]
            if block in self.names:
                self.given_up.append(block)


class BlockMachine(RuleBasedStateMachine):
    """Sequences take, share, name and release blocks."""

    @initialize(num_blocks=st.integers(1, 12))
    def start(self, num_blocks):
        self.evicted: list[bytes] = []
        self.blocks = BlockManager(num_blocks, self.evicted.append)
        self.naive = NaiveBlocks(num_blocks)
        self.tables: list[list[int]] = []

    @rule(count=st.integers(0, 6))
    def allocate(self, count):
        count = min(count, self.blocks.num_free)
        blank = self.naive.blank
        num_evicted = max(0, count - len(blank))
        expected = [self.naive.names.pop(block) for block in self.naive.given_up[:num_evicted]]
        candidates = blank | set(self.naive.given_up[:num_evicted])
        del self.naive.given_up[:num_evicted]
        before = len(self.evicted)
        found = self.blocks.allocate(count)
        assert len(found) == len(set(found)) == count
        assert set(found) <= candidates, "blank blocks first, then those used least recently"
        assert self.evicted[before:] == expected, "each is reported once, in that order"
        self.naive.holders |= dict.fromkeys(found, 1)
        self.tables.append(found)

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 50), name=st.binary(min_size=1, max_size=1))
    def name(self, which, name):
        table = self.tables[which % len(self.tables)]
        for position, block in enumerate(table):
            each = name + bytes([position])
            self.blocks.name(block, each)
            if each not in self.naive.names.values() and block not in self.naive.names:
                self.naive.names[block] = each

    @precondition(lambda self: self.naive.names)
    @rule(count=st.integers(1, 4), which=st.integers(0, 50))
    def share(self, count, which):
        names = sorted(self.naive.names.values())
        found = [self.blocks.find(name) for name in names[which % len(names) :][:count]]
        self.blocks.share(found)
        for block in found:
            self.naive.holders[block] = self.naive.holders.get(block, 0) + 1
            if block in self.naive.given_up:
                self.naive.given_up.remove(block)
        self.tables.append(found)

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 50))
    def release(self, which):
        table = self.tables.pop(which % len(self.tables))
        self.blocks.release(table)
        for block in table[::-1]:
            self.naive.release(block)

    @rule()
    def forget_all(self):
        before = len(self.evicted)
        self.blocks.forget_all()
        self.naive.names.clear()
        self.naive.given_up.clear()
        assert len(self.evicted) == before

    @invariant()
    def same(self):
        if hasattr(self, "blocks"):
            assert self.blocks.num_used == len(self.naive.holders)
            assert self.blocks.num_free == self.naive.num_blocks - len(self.naive.holders)
            for block, name in self.naive.names.items():
                assert self.blocks.find(name) == block
            assert all(self.blocks.find(name) is None for name in set(self.evicted) - set(self.naive.names.values()))

    def teardown(self):
        if hasattr(self, "blocks"):
            while self.tables:
                self.release(0)
            assert self.blocks.num_used == 0
            assert sorted(self.blocks.allocate(self.naive.num_blocks)) == list(range(self.naive.num_blocks))


TestBlocks = BlockMachine.TestCase
TestBlocks.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def named(blocks: BlockManager, names: list[bytes]) -> list[int]:
    table = blocks.allocate(len(names))
    for block, name in zip(table, names, strict=True):
        blocks.name(block, name)
    return table


def test_the_end_of_a_sequence_goes_before_its_beginning():
    evicted: list[bytes] = []
    blocks = BlockManager(4, evicted.append)
    blocks.release(named(blocks, [b"1", b"2", b"3", b"4"]))
    blocks.allocate(3)
    assert evicted == [b"4", b"3", b"2"]


def test_what_was_used_again_stays_longer():
    evicted: list[bytes] = []
    blocks = BlockManager(4, evicted.append)
    first, second = named(blocks, [b"a1", b"a2"]), named(blocks, [b"b1", b"b2"])
    blocks.release(first)
    blocks.release(second)
    blocks.share(first)
    blocks.release(first)
    blocks.allocate(2)
    assert evicted == [b"b2", b"b1"]


def test_what_others_still_use_is_not_given_away():
    blocks = BlockManager(3)
    table = named(blocks, [b"1", b"2"])
    blocks.share(table)
    blocks.release(table)
    assert blocks.num_free == 1
    assert not set(blocks.allocate(1)) & set(table)


def test_the_first_block_of_a_name_keeps_it():
    blocks = BlockManager(4)
    first, second = named(blocks, [b"1"]), named(blocks, [b"1"])
    assert blocks.find(b"1") == first[0]
    blocks.release(second)
    assert blocks.find(b"1") == first[0]
    assert blocks.num_free == 3


def test_neighbours_stay_neighbours():
    """A run of blocks in order is read in one piece."""
    assert BlockManager(8).allocate(5) == [0, 1, 2, 3, 4]
