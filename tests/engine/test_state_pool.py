"""The pool of states: sequences that run always get a slot, and no slot has two uses."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from codemill.engine.state_pool import StatePool

NAMES = st.binary(min_size=1, max_size=1).map(lambda raw: bytes([raw[0] % 12]))


class StateMachine(RuleBasedStateMachine):
    """Beside a naive pool: checkpoints in a list, the one used least recently first."""

    @initialize(max_running=st.integers(1, 5), more=st.integers(0, 6))
    def start(self, max_running, more):
        self.pool = StatePool(max_running + more, max_running)
        self.max_running = max_running
        self.running: list[int] = []
        self.pending: dict[bytes, int] = {}
        self.checkpoints: list[tuple[bytes, int]] = []

    @precondition(lambda self: len(self.running) < self.max_running)
    @rule()
    def acquire(self):
        self.running.append(self.take(self.pool.acquire()))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 10))
    def release(self, which):
        self.pool.release(self.running.pop(which % len(self.running)))

    @rule(name=NAMES)
    def reserve(self, name):
        if self.pool.has(name):
            return
        needed = self.max_running - len(self.running)
        possible = self.pool.num_slots - len(self.running) - len(self.pending) > needed
        slot = self.pool.reserve(name)
        assert (slot is not None) == possible
        if slot is not None:
            self.pending[name] = self.take(slot)

    @rule(name=NAMES)
    def find(self, name):
        expected = dict(self.checkpoints).get(name)
        assert self.pool.find(name) == expected
        if expected is not None:
            self.checkpoints.remove((name, expected))
            self.checkpoints.append((name, expected))

    @rule()
    def settle(self):
        self.pool.settle()
        self.checkpoints += self.pending.items()
        self.pending.clear()

    @precondition(lambda self: self.pending)
    @rule(keep=st.booleans(), which=st.integers(0, 10))
    def settle_one(self, keep, which):
        name = sorted(self.pending)[which % len(self.pending)]
        self.pool.settle_one(name, keep)
        slot = self.pending.pop(name)
        if keep:
            self.checkpoints.append((name, slot))

    @rule()
    def cancel(self):
        self.pool.cancel()
        self.pending.clear()

    @rule(name=NAMES)
    def drop(self, name):
        self.pool.drop(name)
        self.checkpoints = [each for each in self.checkpoints if each[0] != name]

    @rule()
    def forget_all(self):
        self.pool.forget_all()
        self.pending.clear()
        self.checkpoints.clear()

    def take(self, slot: int) -> int:
        """The slot was free, or it was that of the checkpoint used least recently."""
        assert 0 <= slot < self.pool.num_slots
        assert slot not in self.running
        assert slot not in self.pending.values(), "what a pass is about to fill has no other use in that pass"
        held = [each for _, each in self.checkpoints]
        if slot in held:
            assert len(self.running) + len(self.pending) + len(held) == self.pool.num_slots, "free slots go first"
            assert slot == held[0]
            del self.checkpoints[0]
        return slot

    @invariant()
    def same(self):
        if hasattr(self, "pool"):
            assert self.pool.num_used == len(self.running) + len(self.pending) + len(self.checkpoints)
            assert self.pool.num_checkpoints == len(self.checkpoints)
            names = {*self.pending, *dict(self.checkpoints)}
            assert all(self.pool.has(bytes([i])) == (bytes([i]) in names) for i in range(12))


TestStates = StateMachine.TestCase
TestStates.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_a_reserved_slot_is_found_after_the_pass_only():
    pool = StatePool(3, 1)
    slot = pool.reserve(b"a")
    assert pool.find(b"a") is None
    assert pool.has(b"a")
    pool.settle()
    assert pool.find(b"a") == slot


def test_checkpoints_make_room_for_sequences():
    pool = StatePool(3, 2)
    for name in (b"a", b"b"):
        assert pool.reserve(name) is not None
        pool.settle()
    pool.acquire()
    assert pool.find(b"b") is not None
    pool.acquire()
    assert [pool.find(name) is None for name in (b"a", b"b")] == [True, False]


def test_without_slots_to_spare_there_are_no_checkpoints():
    pool = StatePool(2, 2)
    assert pool.reserve(b"a") is None
    pool.acquire()
    assert pool.reserve(b"a") is None
    pool.acquire()
    assert pool.reserve(b"a") is None
