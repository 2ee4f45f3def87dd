"""What each sequence holds of the KV cache and of the state pool, and what it finds there already. No torch here."""

from dataclasses import dataclass
from typing import Protocol

from codemill.engine.block_manager import BlockManager
from codemill.engine.prefix_hash import extend_hashes
from codemill.engine.sequence import CachedTokens, Sequence
from codemill.engine.state_pool import StatePool


@dataclass(frozen=True)
class CacheShape:
    """Sizes of the cache. num_states is 0 for a model without recurrent states, else at least max_num_seqs."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    num_states: int = 0
    state_interval: int = 1024
    enable_prefix_cache: bool = True

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self.block_size


class Keeper(Protocol):
    """Keeps prompts elsewhere, such as on disk, and brings them back; restoring says whether it had them."""

    def note_use(self, names: list[bytes]) -> None: ...

    def save_block(self, name: bytes, block: int) -> None: ...

    def save_state(self, name: bytes, slot: int) -> None: ...

    def restore_block(self, name: bytes, block: int) -> bool: ...

    def has_state(self, name: bytes) -> bool: ...

    def restore_state(self, name: bytes, slot: int) -> bool: ...


class CacheManager:
    """Gives blocks and state slots to sequences and takes them back; finds prefixes that were computed before.

    state_copies: pairs (source, target) of state slots for the runner to copy before the next pass, in order; source
    None is the state before the first token.
    """

    def __init__(self, shape: CacheShape, keeper: Keeper | None = None) -> None:
        self.shape = shape
        self.blocks, self.states = self._empty()
        self.state_copies: list[tuple[int | None, int]] = []
        self.keeper = keeper
        self._to_save: list[tuple[bytes, int]] = []

    @property
    def is_unused(self) -> bool:
        """Whether no sequence holds anything."""
        return not self.blocks.num_used and (self.states is None or self.states.num_used == self.states.num_checkpoints)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.shape.block_size)

    def names(self, sequence: Sequence) -> list[bytes]:
        """The names of all full blocks of the sequence's tokens."""
        extend_hashes(sequence.cached.names, sequence.all_token_ids, self.shape.block_size, sequence.salt)
        return sequence.cached.names

    def attach_prefix(self, sequence: Sequence) -> None:
        """Give a waiting sequence the longest beginning that is cached; at least its last token is left to compute."""
        cached = sequence.cached
        if not self.shape.enable_prefix_cache or sequence.wants_prompt_logprobs:
            return
        size = self.shape.block_size
        for name in self.names(sequence)[: (len(sequence.all_token_ids) - 1) // size]:
            block = self.blocks.find(name)
            if block is None:
                block = self._restore_block(name)
            if block is None:
                break
            self.blocks.share([block])
            cached.block_table.append(block)
        self._cut_to_checkpoint(cached)
        cached.num_computed = len(cached.block_table) * size

    def start(self, sequence: Sequence) -> None:
        """Let the sequence run, after `attach_prefix`: it gets a state to continue from."""
        cached = sequence.cached
        if self.keeper is not None:
            self.keeper.note_use(cached.names[: len(cached.block_table)])
            self._keep_reused(sequence, self.keeper)
        if self.states is None:
            return
        source = self.states.find(cached.names[len(cached.block_table) - 1]) if cached.block_table else None
        cached.state_slot = self.states.acquire()
        self.state_copies.append((source, cached.state_slot))

    def detach(self, sequence: Sequence) -> None:
        """Undo `attach_prefix`."""
        self.blocks.release(sequence.cached.block_table)
        sequence.cached.block_table, sequence.cached.num_computed = [], 0

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give the sequence room for `num_tokens` more than are computed; False if there are not the blocks."""
        cached = sequence.cached
        missing = self.blocks_for(cached.num_computed + num_tokens) - len(cached.block_table)
        if missing <= 0:
            return True
        if missing > self.blocks.num_free:
            return False
        cached.block_table += self.blocks.allocate(missing)
        return True

    def plan_checkpoints(self, sequence: Sequence, num_new: int) -> tuple[tuple[int, int], ...]:
        """Where to copy the state during a pass over `num_new` tokens: pairs (after so many of them, slot).

        Kept are the states at the end of the prompt's last full block, every `state_interval` tokens, and at the last
        full block so far, which replaces the one before it.
        """
        if self.states is None or not self.shape.enable_prefix_cache:
            return ()
        cached, plan = sequence.cached, []
        start, stop = cached.num_computed, cached.num_computed + num_new
        lasting, latest = self._boundaries(sequence, start, stop)
        for boundary in sorted({*lasting, *latest}):
            name = self.names(sequence)[boundary // self.shape.block_size - 1]
            if boundary in latest:
                self._drop_latest(cached)
            if self.states.has(name):
                continue
            slot = self.states.reserve(name)
            if slot is None:
                break
            plan.append((boundary - start, slot))
            if boundary not in lasting:
                cached.latest_checkpoint = name
            elif boundary <= len(sequence.prompt_token_ids):
                self._to_save.append((name, slot))
        return tuple(plan)

    def advance(self, sequence: Sequence, num_tokens: int) -> None:
        """So many more tokens are computed: blocks that became full can be found from now on."""
        cached, size = sequence.cached, self.shape.block_size
        first = cached.num_computed // size
        cached.num_computed += num_tokens
        last = cached.num_computed // size
        if last > first and self.shape.enable_prefix_cache:
            names = self.names(sequence)
            for index in range(first, last):
                self.blocks.name(cached.block_table[index], names[index])
                if self.keeper is not None and (index + 1) * size <= len(sequence.prompt_token_ids):
                    self.keeper.save_block(names[index], cached.block_table[index])

    def release(self, sequence: Sequence, started: bool = True) -> None:
        """Take everything back. What is findable stays so until the space is needed."""
        if self.states is not None and started:
            self.states.release(sequence.cached.state_slot)
        self.blocks.release(sequence.cached.block_table)
        sequence.cached = CachedTokens(names=sequence.cached.names)

    def settle(self) -> None:
        """The pass is done."""
        self.state_copies.clear()
        if self.states is None:
            return
        self.states.settle()
        if self.keeper is not None:
            for name, slot in self._to_save:
                self.keeper.save_state(name, slot)
        self._to_save.clear()

    def cancel(self) -> None:
        """The pass failed: nothing that it was to fill may be used."""
        self.state_copies.clear()
        self._to_save.clear()
        if self.states is not None:
            self.states.cancel()

    def forget_all(self) -> None:
        """Nothing that is cached may be reused any more."""
        self.blocks.forget_all()
        if self.states is not None:
            self.states.forget_all()

    def start_over(self) -> None:
        """Nothing is cached and nobody holds anything, whatever state an interrupted call left behind."""
        self.blocks, self.states = self._empty()
        self.state_copies.clear()
        self._to_save.clear()

    def _empty(self) -> tuple[BlockManager, StatePool | None]:
        shape = self.shape
        states = StatePool(shape.num_states, shape.max_num_seqs) if shape.num_states else None
        return BlockManager(shape.num_blocks, self._on_evict), states

    def _boundaries(self, sequence: Sequence, start: int, stop: int) -> tuple[set[int], set[int]]:
        """Token counts in (start, stop] at which the state is kept for good, and the last one at which it may be."""
        size, interval = self.shape.block_size, self.shape.state_interval
        lasting = set(range(start // interval * interval + interval, stop + 1, interval))
        prompt_end = (len(sequence.prompt_token_ids) - 1) // size * size
        if start < prompt_end <= stop:
            lasting.add(prompt_end)
        latest = stop // size * size
        return lasting, {latest} if latest > start else set()

    def _keep_reused(self, sequence: Sequence, keeper: Keeper) -> None:
        """Keep what the sequence reuses of its prompt: an earlier answer in it was computed as no prompt."""
        cached = sequence.cached
        blocks = cached.block_table[: len(sequence.prompt_token_ids) // self.shape.block_size]
        for name, block in zip(cached.names, blocks, strict=False):
            keeper.save_block(name, block)
        name = cached.names[len(blocks) - 1] if blocks else b""
        slot = self.states.find(name) if self.states is not None else None
        if slot is not None:
            keeper.save_state(name, slot)

    def _drop_latest(self, cached: CachedTokens) -> None:
        if self.states is not None and cached.latest_checkpoint is not None:
            self.states.drop(cached.latest_checkpoint)
            cached.latest_checkpoint = None

    def _cut_to_checkpoint(self, cached: CachedTokens) -> None:
        """Give back the blocks behind the last state that was kept; without one nothing can be reused."""
        if self.states is None:
            return
        usable = len(cached.block_table)
        while usable and not self._has_state(cached.names[usable - 1]):
            usable -= 1
        self.blocks.release(cached.block_table[usable:])
        del cached.block_table[usable:]

    def _has_state(self, name: bytes) -> bool:
        assert self.states is not None
        if self.states.find(name) is not None:
            return True
        if self.keeper is None or not self.keeper.has_state(name):
            return False
        slot = self.states.reserve(name)
        if slot is None:
            return False
        # Copies wait for the pass, and what is restored does not: it would be overwritten, or copied instead.
        is_awaited = any(slot in copy for copy in self.state_copies)
        found = not is_awaited and self.keeper.restore_state(name, slot)
        self.states.settle_one(name, keep=found)
        return found

    def _restore_block(self, name: bytes) -> int | None:
        if self.keeper is None or not self.blocks.num_free:
            return None
        (block,) = self.blocks.allocate(1)
        found = self.keeper.restore_block(name, block)
        if found:
            self.blocks.name(block, name)
        self.blocks.release([block])
        return block if found else None

    def _on_evict(self, name: bytes) -> None:
        if self.states is not None:
            self.states.drop(name)
