"""The scheduler without a model: what it promises, and that what passes read from the cache is what they expect."""

import random
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from codemill.engine.cache_manager import CacheShape
from codemill.engine_config import EngineConfig
from engine.scheduling import VOCAB_SIZE, Shelf, Simulation, prompt_of

LONGEST = 96  # tokens of prompt and output
IDS = st.integers(0, VOCAB_SIZE - 1)


def simulate(num_blocks: int = 64, block_size: int = 4, max_num_seqs: int = 8, **options: int) -> Simulation:
    """A full-attention model's scheduler; `options` are those of the engine."""
    config = EngineConfig(block_size=block_size, max_num_seqs=max_num_seqs, state_interval=block_size, **options)
    return Simulation(config, CacheShape(num_blocks, block_size, max_num_seqs))


def random_simulation(rng: random.Random) -> Simulation:
    """Little memory, odd sizes, with states or without, with a shelf or without, with drafts or without."""
    block_size = rng.choice([1, 2, 4, 16])
    config = EngineConfig(
        block_size=block_size,
        max_num_seqs=rng.choice([1, 2, 5, 9]),
        max_num_batched_tokens=rng.choice([16, 40, 200]),
        max_mixed_tokens=rng.choice([1, 5, 16]),
        state_interval=block_size * rng.choice([1, 2, 4]),
    )
    num_blocks = -(-LONGEST // block_size) * rng.choice([10, 13, 25, 80]) // 10
    num_states = config.max_num_seqs + rng.choice([0, 1, 3, 12]) if rng.random() < 0.6 else 0
    shape = CacheShape(
        num_blocks, block_size, config.max_num_seqs, num_states, config.state_interval, rng.random() < 0.8
    )
    shelf = Shelf() if rng.random() < 0.4 else None
    return Simulation(config, shape, rng, shelf, max_drafts=rng.choice([0, 0, 3, 20]))


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come and go in any order; `Simulation` checks every pass."""

    @initialize(seed=st.integers(0, 10**6))
    def start(self, seed):
        self.simulation = random_simulation(random.Random(seed))
        self.sequences = []

    @rule(
        base=st.integers(0, 20),
        shared=st.integers(0, LONGEST),
        new=st.lists(IDS, min_size=1, max_size=50),
        max_tokens=st.integers(1, 20),
        priority=st.sampled_from([-1, 0, 0, 1]),
        samples=st.sampled_from([1, 1, 3]),
        salt=st.sampled_from([b"", b"", b"adapter"]),
    )
    def add(self, base, shared, new, max_tokens, priority, samples, salt):
        earlier = self.sequences[base % len(self.sequences)].all_token_ids if self.sequences else []
        prompt = [*earlier[:shared], *new][: LONGEST - 20]
        for _ in range(samples):
            self.sequences.append(self.simulation.add(prompt, max_tokens, priority=priority, salt=salt))

    @rule(count=st.integers(1, 12))
    def step(self, count):
        for _ in range(count):
            self.simulation.step()

    @precondition(lambda self: self.sequences)
    @rule(which=st.integers(0, 100))
    def abort(self, which):
        self.simulation.abort(self.sequences[which % len(self.sequences)])
        self.simulation.check_accounts()

    @rule()
    def fail(self):
        self.simulation.fail_step()

    @rule()
    def forget(self):
        self.simulation.scheduler.preempt_all()
        self.simulation.cache.forget_all()
        self.simulation.check_accounts()

    def teardown(self):
        if not hasattr(self, "simulation"):
            return
        self.simulation.run()
        assert all(sequence.finish_reason is not None for sequence in self.sequences)
        assert self.simulation.cache.blocks.num_used == 0


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_without_torch():
    code = "import sys, codemill.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("seed", range(40))
def test_random_loads_come_to_an_end(seed):
    """Also under arrivals that do not wait for anything, and with far more than fits at once."""
    rng = random.Random(seed)
    simulation = random_simulation(rng)
    prompts, sequences = [prompt_of(40)], []
    for _ in range(40):
        prompt = [*rng.choice(prompts)[: rng.randint(0, 60)], *rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 30))]
        prompts.append(prompt[: LONGEST - 20])
        sequences.append(simulation.add(prompts[-1], rng.randint(1, 20), priority=rng.choice([0, 0, 1])))
        for _ in range(rng.choice([0, 0, 1, 6])):
            simulation.step()
        if rng.random() < 0.1:
            simulation.abort(rng.choice(sequences))
    simulation.run()
    assert all(sequence.finish_reason in ("length", "abort") for sequence in sequences)
    assert simulation.cache.blocks.num_used == 0


# The budget of a step


def test_a_prompt_alone_takes_the_whole_budget():
    simulation = simulate(max_num_batched_tokens=50, max_mixed_tokens=10)
    simulation.add(prompt_of(120))
    assert [simulation.step().num_tokens for _ in range(3)] == [50, 50, 20]


def test_beside_a_decode_prompts_take_the_smaller_budget():
    simulation = simulate(max_num_batched_tokens=50, max_mixed_tokens=10)
    simulation.add([1], 20)
    simulation.step()
    simulation.add(prompt_of(30))
    assert [simulation.step().num_tokens for _ in range(4)] == [10, 10, 10, 4]


def test_a_mixed_step_is_no_larger_than_any_step_may_be():
    """max_num_batched_tokens says how many tokens a step has, whatever max_mixed_tokens says."""
    simulation = simulate(max_num_batched_tokens=16, max_mixed_tokens=256)
    simulation.add([1], 20)
    simulation.step()
    simulation.add(prompt_of(100))
    assert simulation.step().num_tokens <= 16


def test_drafts_keep_within_what_a_pass_verifies_cheaply():
    simulation = simulate(num_blocks=400, max_num_seqs=32)
    simulation.max_drafts = 20
    for i in range(32):
        simulation.add([i], 30)
    simulation.run()  # `check_step` looks at every step


# Fairness


def test_short_prompts_pass_a_long_one_by_which_goes_on():
    simulation = simulate(num_blocks=600, max_num_batched_tokens=64, max_mixed_tokens=32, max_num_seqs=16)
    long = simulation.add(prompt_of(1000), 2)
    simulation.step()
    for i in range(10):
        short = simulation.add(prompt_of(8, seed=i + 1), 3)
        before, steps = long.cached.num_computed, 0
        while not short.token_ids:
            simulation.step()
            steps += 1
            assert long.cached.num_computed > before, "the long prompt goes on in every step"
            before = long.cached.num_computed
        assert steps <= 2
    simulation.run()


@pytest.mark.parametrize("max_num_seqs", [4, 24])
def test_every_prompt_that_runs_moves_on_in_every_few_steps(max_num_seqs):
    """Also if more of them run than the budget has tokens."""
    simulation = simulate(600, 4, max_num_seqs, max_num_batched_tokens=12, max_mixed_tokens=4)
    first = simulation.add(prompt_of(60), 3)
    for i in range(100):
        simulation.add(prompt_of(50, seed=i + 1), 3)
    steps = 0
    while not first.token_ids:
        simulation.step()
        steps += 1
    assert steps <= 60 // (12 // max_num_seqs or 1)


@pytest.mark.parametrize("seed", range(12))
def test_nobody_waits_for_those_who_come_later(seed):
    """While others keep coming, a request is served within the steps of the work before it and of its own."""
    rng = random.Random(seed)
    simulation = simulate(40, 4, rng.choice([1, 3, 6]), max_num_batched_tokens=32, max_mixed_tokens=8)
    waiting = {}
    for number in range(250):
        if len(simulation.scheduler.waiting) < 5:
            sequence = simulation.add(prompt_of(rng.randint(1, 80), seed=number), rng.randint(1, 30))
            ahead = [*simulation.scheduler.running, *simulation.scheduler.waiting]
            # What was computed is computed again after a preemption, so all of it counts.
            waiting[sequence.arrival] = sequence, number + sum(each.max_length for each in ahead)
        simulation.step()
        for arrival, (sequence, latest) in list(waiting.items()):
            if sequence.finish_reason is not None:
                del waiting[arrival]
            assert number <= latest


# Priorities


def test_an_urgent_prompt_takes_what_it_wants_of_the_budget():
    simulation = simulate(max_num_batched_tokens=20)
    slow = simulation.add(prompt_of(100), priority=1)
    simulation.step()
    urgent = simulation.add(prompt_of(30, seed=1), priority=0)
    shares = {id(each.sequence): each.num_new for each in simulation.step().scheduled}
    assert shares == {id(urgent): 20}
    assert {id(each.sequence) for each in simulation.step().scheduled} == {id(urgent), id(slow)}


def test_an_urgent_request_takes_the_room_of_a_prompt():
    simulation = simulate(num_blocks=16, max_num_batched_tokens=16)
    slow = simulation.add(prompt_of(60), priority=1)
    simulation.step()
    urgent = simulation.add(prompt_of(40, seed=1), priority=0)
    step = simulation.step()
    assert step.preempted == [slow]
    assert step.scheduled[0].sequence is urgent


@pytest.mark.parametrize("limits", [{"max_num_seqs": 1}, {"num_blocks": 30}], ids=["sequences", "blocks"])
def test_an_urgent_request_does_not_wait_for_the_end_of_a_decode(limits):
    simulation = simulate(**limits)
    simulation.add(prompt_of(20), 90, priority=1)
    for _ in range(40):
        simulation.step()
    urgent = simulation.add(prompt_of(70, seed=1), 2, priority=0)
    for _ in range(3):
        simulation.step()
    assert urgent.token_ids


def test_an_urgent_request_does_not_wait_for_a_prefix_that_a_slow_one_computes():
    """The slow one gets nothing of the budget as long as others are more urgent."""
    simulation = simulate(num_blocks=4000, max_num_seqs=8, max_num_batched_tokens=16, max_mixed_tokens=16)
    simulation.add(prompt_of(200), priority=1)
    simulation.step()
    others = [simulation.add(prompt_of(500, seed=i + 1), priority=0) for i in range(3)]
    urgent = simulation.add(prompt_of(200), priority=-1)
    for _ in range(200 // 16 + 2):
        simulation.step()
    assert urgent.token_ids
    assert not any(other.token_ids for other in others)


# Memory


def test_the_last_in_order_is_preempted_first():
    simulation = simulate(num_blocks=12, max_num_seqs=8)
    order = [simulation.add(prompt_of(8, seed=i), 40, priority=priority) for i, priority in enumerate((0, 1, 0))]
    expected = [order[1], order[2]]
    preempted = []
    while len(preempted) < 2:
        preempted += simulation.step().preempted
    assert preempted == expected
    simulation.run()


def test_who_is_preempted_finds_what_it_had():
    simulation = simulate(num_blocks=24)
    first = simulation.add(prompt_of(20), 60)
    last = simulation.add(prompt_of(20, seed=1), 30)
    while last not in simulation.step().preempted:
        pass
    had = len(last.all_token_ids)
    assert first in simulation.scheduler.running
    assert last.cached.num_computed == 0
    simulation.abort(first)
    (each,) = simulation.step().scheduled
    assert each.num_new <= 4 + 1, f"nearly all of {had} tokens is still there"
    simulation.run()


def test_a_prompt_starts_when_there_is_room_for_all_of_it():
    simulation = simulate(num_blocks=20, max_num_batched_tokens=8)
    first, second = simulation.add(prompt_of(60), 1), simulation.add(prompt_of(60, seed=1), 1)
    while first.finish_reason is None:
        simulation.step()
        assert second not in simulation.scheduler.running or first.finish_reason is not None
    simulation.run()


def test_room_that_drafts_may_use_is_not_promised_twice():
    """Blocks that a sequence holds for drafts are not free, and it needs no others for itself."""
    simulation = simulate(num_blocks=60, block_size=1, max_num_batched_tokens=8)
    drafting = simulation.add([1], 40)
    simulation.step()
    drafting.drafts = [2] * 20
    simulation.scheduler.complete(simulation.scheduler.schedule(), [0])
    assert len(drafting.cached.block_table) >= 20
    free = simulation.cache.blocks.num_free
    late = [simulation.add(prompt_of(free // 2 - 1, seed=i), 1) for i in range(4)]
    simulation.scheduler.schedule()
    started = [sequence for sequence in late if sequence in simulation.scheduler.running]
    assert sum(len(sequence.all_token_ids) + 1 for sequence in started) <= free


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15])
@pytest.mark.parametrize("num_states", [0, 2])
def test_a_cache_of_one_sequence_serves_many(length, num_states):
    config = EngineConfig(block_size=8, max_num_seqs=2, state_interval=8, max_num_batched_tokens=3)
    simulation = Simulation(config, CacheShape(2, 8, 2, num_states, 8))
    sequences = [simulation.add(prompt_of(length, seed=i % 2), 16 - length) for i in range(5)]
    simulation.run(1000)
    assert all(len(sequence.all_token_ids) == 16 for sequence in sequences)


@pytest.mark.parametrize("num_steps", range(14))
def test_an_abort_gives_everything_back(num_steps):
    """Before, during and after the prompt, and while another waits for its beginning."""
    config = EngineConfig(block_size=4, max_num_seqs=4, state_interval=8, max_num_batched_tokens=8, max_mixed_tokens=8)
    simulation = Simulation(config, CacheShape(30, 4, 4, 8, 8), max_drafts=3)
    sequences = [simulation.add(prompt_of(40), 6) for _ in range(3)]
    for _ in range(num_steps):
        simulation.step()
    for sequence in sequences:
        simulation.abort(sequence)
        simulation.abort(sequence)  # twice is once
        simulation.check_accounts()
    assert simulation.scheduler.is_idle
    assert simulation.cache.blocks.num_used == 0


# Prefixes that others compute


@pytest.mark.parametrize("num_states", [0, 16])
def test_equal_prompts_that_come_together_are_computed_once(num_states):
    config = EngineConfig(block_size=4, max_num_seqs=8, state_interval=64, max_num_batched_tokens=16)
    simulation = Simulation(config, CacheShape(100, 4, 8, num_states, 64))
    sequences = [simulation.add(prompt_of(50), 1) for _ in range(8)]
    simulation.run()
    assert simulation.num_scheduled == 50 + 7 * 2
    assert all(sequence.finish_reason == "length" for sequence in sequences)


def test_a_prompt_that_goes_on_differently_waits_for_what_is_common_only():
    simulation = simulate(num_blocks=200, max_num_batched_tokens=16)
    simulation.add(prompt_of(120), 1)
    second = simulation.add([*prompt_of(120)[:40], *prompt_of(20, seed=1)], 1)
    for _ in range(5):
        simulation.step()
    assert second.cached.num_computed > 40
    simulation.run()
    assert simulation.num_scheduled == 140


@pytest.mark.parametrize("how", ["abort", "preempt"])
def test_who_waits_for_a_prefix_goes_on_when_nobody_computes_it(how):
    simulation = simulate(num_blocks=40, max_num_batched_tokens=16)
    first, second = simulation.add(prompt_of(100), 2), simulation.add(prompt_of(100), 2)
    simulation.step()
    simulation.step()
    assert second in simulation.scheduler.waiting
    if how == "abort":
        simulation.abort(first)
    else:
        simulation.scheduler.preempt_all()
        simulation.scheduler.remove(first)
    step = simulation.step()
    assert [each.sequence for each in step.scheduled] == [second]
    assert second.cached.num_computed == 32 + 16, "and with what there is of it"


def test_samples_of_one_prompt_are_not_held_up_by_an_unrelated_wait():
    simulation = simulate(num_blocks=200, max_num_batched_tokens=16)
    simulation.add(prompt_of(100), 1)
    waiting = simulation.add(prompt_of(100), 1)
    other = simulation.add(prompt_of(6, seed=1), 1)
    simulation.step()
    assert waiting in simulation.scheduler.waiting
    assert other.token_ids, "who comes later and needs nothing of it goes first"
    simulation.run()


def test_salts_keep_equal_prompts_apart():
    simulation = simulate(num_blocks=200)
    for salt in (b"one", b"two", b"one"):
        simulation.add(prompt_of(40), 1, salt=salt)
        simulation.run()
    assert simulation.num_scheduled == 40 + 40 + 4


# Passes that fail


def test_what_finished_in_a_pass_that_failed_afterwards_does_not_run_again():
    simulation = simulate()
    done, other = simulation.add(prompt_of(5), 1), simulation.add(prompt_of(6, seed=1), 9)
    step = simulation.scheduler.schedule()
    simulation.compute(step)  # tokens are chosen, then something else raises
    simulation.cache.cancel()
    simulation.scheduler.preempt_all()
    assert done.finish_reason == "length"
    assert simulation.scheduler.waiting == [other]
