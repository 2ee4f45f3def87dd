"""Prefixes in the cache: what is found again, up to where, and what outlives a restart."""

import random

import pytest

from codemill.engine.cache_manager import CacheManager, CacheShape
from codemill.engine.sequence import SampledToken, Sequence
from codemill.engine_config import EngineConfig
from engine.scheduling import Shelf, Simulation, make_sequence, prompt_of

SIZE = 4
INTERVAL = 32


def hybrid(
    num_states: int = 12, max_num_seqs: int = 4, shelf: Shelf | None = None, chunk: int = 16, num_blocks: int = 200
) -> Simulation:
    """The scheduler of a model with recurrent states; passes check that each reads the state it means to."""
    config = EngineConfig(
        block_size=SIZE, max_num_seqs=max_num_seqs, state_interval=INTERVAL, max_num_batched_tokens=chunk
    )
    return Simulation(config, CacheShape(num_blocks, SIZE, max_num_seqs, num_states, INTERVAL), shelf=shelf)


def attention_only(shelf: Shelf | None = None, num_blocks: int = 200) -> Simulation:
    config = EngineConfig(block_size=SIZE, max_num_seqs=4, max_num_batched_tokens=16, state_interval=INTERVAL)
    return Simulation(config, CacheShape(num_blocks, SIZE, 4), shelf=shelf)


def num_reused(simulation: Simulation, prompt: list[int]) -> int:
    """Tokens of the prompt that need not be computed, and are given back again."""
    sequence = make_sequence(prompt)
    simulation.cache.attach_prefix(sequence)
    found = sequence.cached.num_computed
    simulation.cache.detach(sequence)
    return found


def kept_states(simulation: Simulation, tokens: list[int]) -> list[int]:
    """After how many of the tokens a state is kept."""
    assert simulation.cache.states is not None
    names = simulation.cache.names(make_sequence(tokens))
    return [i * SIZE for i, name in enumerate(names, 1) if simulation.cache.states.has(name)]


# Which states are kept


def test_states_are_kept_at_intervals_at_the_end_of_the_prompt_and_where_it_stopped():
    simulation = hybrid(chunk=24)
    sequence = simulation.add(prompt_of(90), 20)
    expected = [[24], [32, 48], [32, 64, 72], [32, 64, 88]]
    for kept in expected:
        simulation.step()
        assert kept_states(simulation, sequence.all_token_ids) == kept
    simulation.run()
    assert kept_states(simulation, sequence.all_token_ids) == [32, 64, 88, 96, 108]


def test_the_latest_state_replaces_the_one_before():
    simulation = hybrid()
    sequence = simulation.add([1, 2, 3], 25)
    simulation.run()
    assert kept_states(simulation, sequence.all_token_ids) == [24]
    assert simulation.cache.states.num_used == 1


def test_a_prompt_shorter_than_a_block_keeps_no_state():
    simulation = hybrid()
    simulation.add([1, 2, 3], 1)
    simulation.run()
    assert simulation.cache.states.num_used == 0


def test_a_plan_has_no_slot_twice_and_only_boundaries_of_blocks():
    for seed in range(30):
        rng = random.Random(seed)
        shape = CacheShape(400, SIZE, 4, rng.choice([4, 5, 8, 30]), SIZE * rng.choice([1, 2, 7]))
        cache = CacheManager(shape)
        sequences = [make_sequence(prompt_of(rng.randint(1, 150), seed=rng.randint(0, 2))) for _ in range(4)]
        for sequence in sequences:
            cache.attach_prefix(sequence)
            cache.start(sequence)
        slots = [sequence.cached.state_slot for sequence in sequences]
        for sequence in sequences:
            num_new = rng.randint(1, sequence.num_pending)
            assert cache.grow(sequence, num_new)
            plan = cache.plan_checkpoints(sequence, num_new)
            slots += [slot for _, slot in plan]
            assert all((sequence.cached.num_computed + after) % SIZE == 0 < after <= num_new for after, _ in plan)
        assert len(set(slots)) == len(slots)


def test_without_a_prefix_cache_nothing_is_kept():
    config = EngineConfig(block_size=SIZE, max_num_seqs=2, state_interval=INTERVAL)
    simulation = Simulation(config, CacheShape(50, SIZE, 2, 9, INTERVAL, enable_prefix_cache=False))
    for _ in range(2):
        simulation.add(prompt_of(60), 2)
        simulation.run()
    assert simulation.num_scheduled == 2 * 61
    assert simulation.cache.states.num_used == 0


# How far a prefix reaches


@pytest.mark.parametrize(
    ("common", "reused"), [(90, 88), (89, 88), (87, 64), (64, 64), (63, 32), (33, 32), (31, 0), (0, 0)]
)
def test_a_prefix_reaches_to_a_state_that_was_kept(common, reused):
    """Here to the multiples of 32 below the common part, and to the last full block of the prompt, at 88."""
    simulation = hybrid(chunk=200)
    simulation.add(prompt_of(90), 1)
    simulation.run()
    assert num_reused(simulation, [*prompt_of(90)[:common], *prompt_of(40, seed=1)]) == reused


@pytest.mark.parametrize(("common", "reused"), [(90, 88), (87, 84), (64, 64), (63, 60), (5, 4), (3, 0)])
def test_without_states_a_prefix_reaches_to_the_last_full_block(common, reused):
    simulation = attention_only()
    simulation.add(prompt_of(90), 1)
    simulation.run()
    assert num_reused(simulation, [*prompt_of(90)[:common], *prompt_of(40, seed=1)]) == reused


@pytest.mark.parametrize("make", [hybrid, attention_only])
@pytest.mark.parametrize("length", [1, 4, 5, 8, 9, 64])
def test_a_token_is_left_to_compute(make, length):
    simulation = make()
    for _ in range(2):
        simulation.add(prompt_of(length), 1)
        simulation.run()
    assert num_reused(simulation, prompt_of(length)) == (length - 1) // SIZE * SIZE


@pytest.mark.parametrize("make", [hybrid, attention_only])
def test_a_conversation_goes_on_from_its_last_answer(make):
    simulation = make()
    first = simulation.add(prompt_of(50), 30)
    simulation.run()
    goes_on = [*first.all_token_ids, *prompt_of(20, seed=1)]
    assert num_reused(simulation, goes_on) >= 79 // SIZE * SIZE
    simulation.add(goes_on, 3)
    simulation.run()


def test_a_state_does_not_outlive_its_block():
    simulation = hybrid(num_blocks=16)
    simulation.add(prompt_of(40), 1)
    simulation.run()
    assert num_reused(simulation, prompt_of(40)) == 36
    simulation.add(prompt_of(60, seed=1), 1)
    simulation.run()
    assert num_reused(simulation, prompt_of(40)) == 0
    assert simulation.cache.states.num_used == len(kept_states(simulation, prompt_of(60, seed=1)))


def test_a_prompt_whose_logprobs_are_wanted_is_computed_whole():
    simulation = hybrid()
    for _ in range(2):
        simulation.add(prompt_of(50), 1, prompt_logprobs=0)
        simulation.run()
    assert simulation.num_scheduled == 100


# Coming and going


@pytest.mark.parametrize("make", [hybrid, attention_only])
def test_looking_changes_nothing(make):
    simulation = make()
    simulation.add(prompt_of(90), 9)
    simulation.run()
    before = simulation.cache.blocks.num_free
    for length in range(1, 91, 7):
        num_reused(simulation, prompt_of(length))
    assert simulation.cache.blocks.num_free == before
    assert simulation.cache.blocks.num_used == 0


def test_a_release_gives_blocks_and_slot_back_and_remembers_the_names():
    cache = CacheManager(CacheShape(10, SIZE, 2, 4, INTERVAL))
    sequence = make_sequence(prompt_of(20))
    for _ in range(5):
        cache.attach_prefix(sequence)
        cache.start(sequence)
        assert cache.grow(sequence, 20)
        names = list(cache.names(sequence))
        cache.release(sequence)
        assert (cache.blocks.num_used, cache.states.num_used) == (0, 0)
        assert sequence.cached.names == names
        assert not sequence.cached.block_table


def test_growing_takes_all_or_nothing():
    cache = CacheManager(CacheShape(5, SIZE, 2))
    first, second = make_sequence(prompt_of(9)), make_sequence(prompt_of(9, seed=1))
    assert cache.grow(first, 9)
    assert not cache.grow(second, 9)
    assert not second.cached.block_table
    assert cache.grow(second, 8)
    assert cache.grow(second, 1), "there is room already"
    assert cache.blocks.num_free == 0


def test_a_pass_that_failed_leaves_nothing_to_find():
    simulation = hybrid()
    simulation.add(prompt_of(60), 1)
    simulation.fail_step()
    assert simulation.cache.states.num_used == 0
    assert num_reused(simulation, prompt_of(60)) == 0
    simulation.run()


# What a keeper has


@pytest.mark.parametrize("make", [hybrid, attention_only])
def test_a_prompt_is_found_after_a_restart(make):
    shelf = Shelf()
    before = make(shelf=shelf)
    before.add(prompt_of(90), 9)
    before.run()
    after = make(shelf=shelf)
    sequence = after.add(prompt_of(90), 9)
    after.run()
    assert after.num_scheduled == 2 + 8
    assert sequence.finish_reason == "length"


@pytest.mark.parametrize("make", [hybrid, attention_only])
def test_nothing_is_kept_but_prompts(make):
    shelf = Shelf()
    simulation = make(shelf=shelf)
    simulation.add(prompt_of(50), 60)
    simulation.run()
    names = set(simulation.cache.names(make_sequence(prompt_of(50))))
    assert set(shelf.blocks) == names
    assert set(shelf.states) <= names
    assert shelf.blocks.keys() >= shelf.states.keys()


@pytest.mark.parametrize("make", [hybrid, attention_only])
def test_a_prompt_with_an_answer_in_it_is_found_after_a_restart(make):
    """The answer was generated before it came back as a part of a prompt, so no pass computed it as such."""
    shelf = Shelf()
    before = make(shelf=shelf)
    first = before.add(prompt_of(50), 30)
    before.run()
    second = [*first.all_token_ids, *prompt_of(40, seed=1)]
    before.add(second, 1)
    before.run()
    assert num_reused(make(shelf=shelf), second) == 116


@pytest.mark.parametrize("num_states", [5, 6, 8, 12])
def test_prompts_that_are_restored_together_have_each_their_own_state(num_states):
    """A restored state must not fall into a slot that another sequence has yet to copy from."""
    prompts = [prompt_of(40, seed=seed) for seed in range(8)]
    shelf = Shelf()
    before = hybrid(40, 8, shelf)
    for prompt in prompts:
        before.add(prompt, 1)
    before.run()
    after = hybrid(num_states, 5, shelf, chunk=200)
    for prompt in prompts[:2]:  # their states are in memory when the others are fetched
        after.add(prompt, 1)
        after.run()
    for prompt in (*prompts[:2], *prompts[2:]):
        after.add(prompt, 1)
    after.run()


def test_a_keeper_that_lost_the_state_is_no_help():
    shelf = Shelf()
    before = hybrid(shelf=shelf)
    before.add(prompt_of(90), 1)
    before.run()
    shelf.states.clear()
    after = hybrid(shelf=shelf)
    after.add(prompt_of(90), 1)
    after.run()
    assert after.num_scheduled == 90


def test_a_state_that_cannot_be_read_is_not_used(monkeypatch):
    shelf = Shelf()
    before = hybrid(shelf=shelf)
    before.add(prompt_of(90), 1)
    before.run()
    monkeypatch.setattr(shelf, "restore_state", lambda name, slot: False)
    after = hybrid(shelf=shelf)
    after.add(prompt_of(90), 1)
    after.run()
    assert after.num_scheduled == 90


def test_restoring_stops_where_there_are_no_free_blocks():
    shelf = Shelf()
    before = attention_only(shelf)
    before.add(prompt_of(90), 1)
    before.run()
    after = attention_only(shelf, num_blocks=24)
    after.add(prompt_of(40, seed=1), 40)
    after.step()
    assert num_reused(after, prompt_of(90)) == (24 - 4) * SIZE
    after.add(prompt_of(90), 1)
    after.run()


def test_names_follow_the_tokens():
    """Tokens come one by one, and each full block is named once."""
    cache = CacheManager(CacheShape(10, SIZE, 2))
    sequence: Sequence = make_sequence([1, 2, 3], max_tokens=30)
    for number in range(4, 20):
        sequence.append(SampledToken(number))
        assert cache.names(sequence) == cache.names(make_sequence(range(1, number + 1)))
