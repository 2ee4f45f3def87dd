"""Sequences without a model, and passes that compute symbols instead of numbers, for the tests of what decides.

What a network would leave in the cache for a token depends on all tokens up to it, so a number that stands for those
tokens takes its place. A pass then can check that it reads what it believes to read, whoever shared, evicted, copied
or restored blocks and states before it.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from codemill.engine.cache_manager import CacheManager, CacheShape
from codemill.engine.generation_config import Distribution
from codemill.engine.sampling_params import SamplingParams
from codemill.engine.scheduler import MAX_VERIFIED_TOKENS, ScheduledSequence, Scheduler, Step
from codemill.engine.sequence import SampledToken, Sequence, SequenceLimits
from codemill.engine_config import EngineConfig

VOCAB_SIZE = 100


@dataclass(frozen=True)
class Adapter:
    """What the cache needs to know of an adapter."""

    fingerprint: bytes


class OneByteTokens:
    """A tokenizer whose tokens are all the letter a."""

    special_ids: frozenset[int] = frozenset()

    def token_bytes(self, token_id: int) -> bytes:
        return b"a"


def make_sequence(
    prompt: Iterable[int], max_tokens: int = 4, *, priority: int = 0, salt: bytes = b"", **params: int
) -> Sequence:
    """A sequence that ends after `max_tokens` tokens."""
    return Sequence(
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(max_tokens=max_tokens, **params),
        distribution=Distribution(),
        limits=SequenceLimits(max_tokens),
        tokenizer=OneByteTokens(),
        priority=priority,
        adapter=Adapter(salt) if salt else None,
    )


def symbols(token_ids: Iterable[int], salt: bytes = b"") -> list[int]:
    """What stands for the cache after 0, 1, ... of the tokens."""
    found = [0]
    for token_id in token_ids:
        found.append(hash((salt, found[-1], token_id)))
    return found


@dataclass
class Memory:
    """What the slots of the KV cache and of the state pool hold: symbols."""

    shape: CacheShape

    def __post_init__(self) -> None:
        self.kv: list[int | None] = [None] * self.shape.num_tokens
        self.states: list[int | None] = [None] * self.shape.num_states

    def block(self, block: int) -> slice:
        return slice(block * self.shape.block_size, (block + 1) * self.shape.block_size)


class Shelf:
    """A keeper of blocks and states that copies them to dictionaries, which outlive the memory."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, list[int | None]] = {}
        self.states: dict[bytes, int | None] = {}
        self.used: list[bytes] = []
        self.memory: Memory | None = None

    def note_use(self, names: list[bytes]) -> None:
        self.used += names

    def save_block(self, name: bytes, block: int) -> None:
        assert self.memory is not None
        self.blocks.setdefault(name, self.memory.kv[self.memory.block(block)])

    def save_state(self, name: bytes, slot: int) -> None:
        assert self.memory is not None
        self.states.setdefault(name, self.memory.states[slot])

    def restore_block(self, name: bytes, block: int) -> bool:
        assert self.memory is not None
        if name in self.blocks:
            self.memory.kv[self.memory.block(block)] = self.blocks[name]
        return name in self.blocks

    def has_state(self, name: bytes) -> bool:
        return name in self.states

    def restore_state(self, name: bytes, slot: int) -> bool:
        assert self.memory is not None
        if name in self.states:
            self.memory.states[slot] = self.states[name]
        return name in self.states


@dataclass
class Simulation:
    """A scheduler whose passes are computed in symbols; the next tokens and the luck of drafts are random.

    num_scheduled: tokens of prompts and outputs that were computed, drafts left out.
    """

    config: EngineConfig
    shape: CacheShape
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    shelf: Shelf | None = None
    max_drafts: int = 0
    num_steps: int = 0
    num_empty: int = 0
    num_scheduled: int = 0

    def __post_init__(self) -> None:
        self.memory = Memory(self.shape)
        if self.shelf is not None:
            self.shelf.memory = self.memory
        self.cache = CacheManager(self.shape, self.shelf)
        self.scheduler = Scheduler(self.config, self.cache)

    def add(self, prompt: Iterable[int], max_tokens: int = 4, **options: int) -> Sequence:
        sequence = make_sequence(prompt, max_tokens, **options)
        self.scheduler.add(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        if sequence.finish_reason is None:
            sequence.finish("abort")
        self.scheduler.remove(sequence)

    def step(self) -> Step:
        """Schedule, check and compute a pass."""
        decoding = [id(each) for each in self.scheduler.running if each.num_pending == 1]
        step = self.scheduler.schedule()
        self.num_steps += 1
        self.num_empty = 0 if step.scheduled else self.num_empty + 1
        assert self.num_empty < 2 or self.scheduler.is_idle, "nothing moves"
        self.check_step(step, decoding)
        if step.scheduled:
            accepted = self.compute(step)
            self.scheduler.complete(step, accepted)
            self.check_accounts()
            self.draft()
        return step

    def fail_step(self) -> None:
        """A pass that fails when it has written to the cache."""
        step = self.scheduler.schedule()
        if step.scheduled:
            for each in step.scheduled:
                self._write(each)
                if self.memory.states:
                    self.memory.states[each.sequence.cached.state_slot] = None
                for _, slot in each.checkpoints:
                    self.memory.states[slot] = None
            self.cache.cancel()
            self.scheduler.preempt_all()
            self.check_accounts()

    def run(self, max_steps: int = 20_000) -> None:
        """Step until nothing is left."""
        for _ in range(max_steps):
            if self.scheduler.is_idle:
                return
            self.step()
        raise AssertionError("the scheduler does not come to an end")

    def compute(self, step: Step) -> list[int]:
        for source, target in self.cache.state_copies:
            self.memory.states[target] = 0 if source is None else self.memory.states[source]
        for each in step.scheduled:
            self._check_past(each)
        for each in step.scheduled:
            self._write(each)
        return [self._advance(each) for each in step.scheduled]

    def check_step(self, step: Step, decoding: list[int]) -> None:
        """The step keeps to its budget, prompts get no less than a block, and every token has a slot of its own."""
        is_mixed = any(id(each.sequence) in decoding for each in step.scheduled)
        limit = self.config.max_mixed_tokens if is_mixed else self.config.max_num_batched_tokens
        decoded = [1 + len(each.drafts) for each in step.scheduled if each.sequence.num_pending == 1]
        assert step.num_tokens <= max(limit, sum(decoded) + self.shape.block_size)
        assert sum(decoded) <= max(len(decoded), MAX_VERIFIED_TOKENS)
        sequences = [id(each.sequence) for each in step.scheduled]
        assert len(set(sequences)) == len(sequences)
        written = [slot for each in step.scheduled for slot in self._new_slots(each)]
        assert len(set(written)) == len(written)
        for each in step.scheduled:
            assert each.sequence in self.scheduler.running
            assert each.sequence.finish_reason is None
            assert 1 <= each.num_new <= each.sequence.num_pending
            assert not each.drafts or each.reaches_end
            assert len(each.drafts) < each.sequence.num_left

    def check_accounts(self) -> None:
        """What is held is held by sequences that run, and nothing beyond the shape exists."""
        running, blocks, states = self.scheduler.running, self.cache.blocks, self.cache.states
        assert blocks.num_used == len({block for each in running for block in each.cached.block_table})
        assert len(running) <= self.shape.max_num_seqs
        assert running == sorted(running, key=lambda sequence: sequence.rank)
        assert self.scheduler.waiting == sorted(self.scheduler.waiting, key=lambda sequence: sequence.rank)
        assert not any(each.cached.block_table or each.cached.num_computed for each in self.scheduler.waiting)
        if states is not None:
            assert len({each.cached.state_slot for each in running}) == len(running)
            assert states.num_used == len(running) + states.num_checkpoints

    def draft(self) -> None:
        for sequence in self.scheduler.running:
            if sequence.num_pending == 1:
                sequence.drafts = self.rng.choices(range(VOCAB_SIZE), k=self.rng.randint(0, self.max_drafts))

    def _new_slots(self, each: ScheduledSequence) -> list[int]:
        start = each.sequence.cached.num_computed
        return self._slots(each.sequence, start, start + each.num_new + len(each.drafts))

    def _slots(self, sequence: Sequence, start: int, stop: int) -> list[int]:
        size, table = self.shape.block_size, sequence.cached.block_table
        return [table[position // size] * size + position % size for position in range(start, stop)]

    def _check_past(self, each: ScheduledSequence) -> None:
        sequence, num_computed = each.sequence, each.sequence.cached.num_computed
        expected = symbols(sequence.all_token_ids[:num_computed], sequence.salt)
        assert [self.memory.kv[slot] for slot in self._slots(sequence, 0, num_computed)] == expected[1:]
        if self.memory.states:
            assert self.memory.states[sequence.cached.state_slot] == expected[-1]

    def _write(self, each: ScheduledSequence) -> None:
        sequence, start = each.sequence, each.sequence.cached.num_computed
        tokens = [*sequence.all_token_ids[: start + each.num_new], *each.drafts]
        new = symbols(tokens, sequence.salt)[start + 1 :]
        for slot, symbol in zip(self._new_slots(each), new, strict=True):
            self.memory.kv[slot] = symbol
        for after, slot in each.checkpoints:
            assert 0 < after <= each.num_new
            self.memory.states[slot] = new[after - 1]

    def _advance(self, each: ScheduledSequence) -> int:
        """Choose tokens as the engine does -> how many drafts were right."""
        sequence, accepted = each.sequence, 0
        stop = sequence.cached.num_computed + each.num_new
        self.num_scheduled += each.num_new
        if each.reaches_end:
            lucky = self.rng.randint(0, len(each.drafts))
            for position in range(lucky + 1):
                is_draft = position < lucky
                sequence.append(SampledToken(each.drafts[position] if is_draft else self.rng.randrange(VOCAB_SIZE)))
                accepted += is_draft
                if sequence.finish_reason is not None:
                    break
        if self.memory.states:
            state = symbols(sequence.all_token_ids[: stop + accepted], sequence.salt)[-1]
            self.memory.states[sequence.cached.state_slot] = state
        return accepted


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Random tokens; another seed, other tokens from the first one on."""
    return random.Random(seed).choices(range(VOCAB_SIZE), k=length)
