"""Which tokens are computed next: decode first, then prompts in fair shares, as far as blocks and budget reach.

No torch here: the scheduler can be followed, and tested, without a model.
"""

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from codemill.engine.cache_manager import CacheManager
from codemill.engine.fair_share import fair_shares
from codemill.engine.sequence import CachedTokens, Sequence
from codemill.engine_config import EngineConfig

# Beyond so many tokens a pass is no longer bound by reading the weights, and drafts cost what they save.
MAX_VERIFIED_TOKENS = 64


class ScheduledSequence(NamedTuple):  # which is made quicker than a dataclass; there is one for each token of decode
    """Part of a step: `num_new` tokens of the sequence that are certain, then drafts to be checked."""

    sequence: Sequence
    num_new: int
    drafts: tuple[int, ...] = ()
    checkpoints: tuple[tuple[int, int], ...] = ()

    @property
    def reaches_end(self) -> bool:
        """Whether the pass computes the sequence's last token, so that the next one can be chosen."""
        return self.num_new == self.sequence.num_pending


@dataclass
class Step:
    """What one forward pass computes."""

    scheduled: list[ScheduledSequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(each.num_new + len(each.drafts) for each in self.scheduled)


class Scheduler:
    """Waiting and running sequences, both in order of (priority, arrival).

    A sequence starts when the blocks for all its tokens are there, so that two long prompts cannot starve each other
    half-way. When blocks run out, the last in order is preempted: it waits again, and finds most of what it had
    computed in the prefix cache. A sequence whose beginning another one is computing right now waits for that.
    """

    def __init__(self, config: EngineConfig, cache: CacheManager) -> None:
        self._config = config
        self._cache = cache
        self._computing: dict[bytes, Sequence] = {}
        self._num_arrived = 0
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence in the queue."""
        self._num_arrived += 1
        sequence.arrival = self._num_arrived
        insort(self.waiting, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, finished or not. What it computed stays in the prefix cache."""
        if sequence in self.running:
            self._stop(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def schedule(self) -> Step:
        """The next step; it may be empty."""
        step = Step()
        self._admit(step)  # first: what decodes may have to make way for what is more urgent
        self._schedule_decode(step)
        used = step.num_tokens
        config = self._config
        limit = config.max_num_batched_tokens
        if step.scheduled:
            limit = min(limit, config.max_mixed_tokens)
        self._schedule_prefill(step, max(config.block_size, limit - used))
        return step

    def complete(self, step: Step, num_accepted: Iterable[int]) -> None:
        """The step was computed, and so many drafts of each sequence turned out right."""
        self._cache.settle()
        for each, accepted in zip(step.scheduled, num_accepted, strict=True):
            first = each.sequence.cached.num_computed
            self._cache.advance(each.sequence, each.num_new + accepted)
            self._forget_computing(each.sequence, first, each.sequence.cached.num_computed)
            if each.sequence.finish_reason is not None:
                self._stop(each.sequence)

    def preempt_all(self) -> list[Sequence]:
        """Make every running sequence wait and compute again; after a pass that failed, or with new weights."""
        victims = list(self.running)
        for sequence in victims:
            if sequence.finish_reason is None:
                self._preempt(sequence)
            else:  # it got its last token before the pass failed
                self._stop(sequence)
        return victims

    def start_over(self) -> None:
        """Every unfinished sequence waits, and nothing is cached: whatever an interrupted call left behind is in order.

        This may itself be interrupted, and called again.
        """
        known = dict.fromkeys([*self.waiting, *self.running])  # one that was on its way may be in both
        for sequence in known:
            sequence.cached, sequence.drafts = CachedTokens(names=sequence.cached.names), []
        self.waiting = sorted((each for each in known if each.finish_reason is None), key=_rank)
        self.running = []
        self._computing.clear()
        self._cache.start_over()

    def _schedule_decode(self, step: Step) -> None:
        """The next token of every sequence that only lacks that, with drafts where there is room."""
        decoding = [sequence for sequence in self.running if sequence.num_pending == 1]
        most = max(0, MAX_VERIFIED_TOKENS // max(1, len(decoding)) - 1)
        for sequence in decoding:
            if step.preempted and sequence in step.preempted:
                continue
            drafts = tuple(sequence.drafts[: min(most, sequence.num_left - 1)]) if sequence.drafts else ()
            if drafts and not self._cache.grow(sequence, 1 + len(drafts)):
                drafts = ()
            if self._make_room(sequence, 1 + len(drafts), step):
                self._schedule(sequence, 1, drafts, step)

    def _schedule_prefill(self, step: Step, budget: int) -> None:
        """Shares of the budget for prompts; a more urgent priority takes all it wants first."""
        if len(step.scheduled) == len(self.running):
            return
        done = {id(each.sequence) for each in step.scheduled}
        prefilling = [sequence for sequence in self.running if id(sequence) not in done]
        for priority in sorted({sequence.priority for sequence in prefilling}):
            peers = [sequence for sequence in prefilling if sequence.priority == priority]
            for sequence, share in zip(peers, fair_shares([s.num_pending for s in peers], budget), strict=True):
                if share and sequence in self.running and self._make_room(sequence, share, step):
                    self._schedule(sequence, share, (), step)
                    budget -= share

    def _schedule(self, sequence: Sequence, num_new: int, drafts: tuple[int, ...], step: Step) -> None:
        checkpoints = self._cache.plan_checkpoints(sequence, num_new)
        step.scheduled.append(ScheduledSequence(sequence, num_new, drafts, checkpoints))

    def _admit(self, step: Step) -> None:
        """Start waiting sequences, in order, as long as there is room for all of what they have to compute."""
        for sequence in list(self.waiting):
            if self._is_computed_by_another(sequence):
                continue
            while not self._has_room_to_start(sequence):
                victim = self.running[-1] if self.running else None
                if victim is None or victim.priority <= sequence.priority:
                    return
                self._preempt(victim)
                step.preempted.append(victim)
            self._cache.start(sequence)
            insort(self.running, sequence, key=_rank)  # first, so that an interrupt loses no sequence
            self.waiting.remove(sequence)
            self._remember_computing(sequence)

    def _has_room_to_start(self, sequence: Sequence) -> bool:
        """Whether the sequence may run; it has then been given the beginning that is cached."""
        if len(self.running) >= self._cache.shape.max_num_seqs:
            return False
        self._cache.attach_prefix(sequence)
        # What running prompts still need is spoken for; a sequence alone always gets its turn.
        spoken_for = sum(self._num_missing(other) for other in self.running)
        if not self.running or self._num_missing(sequence) + spoken_for <= self._cache.blocks.num_free:
            return True
        self._cache.detach(sequence)
        return False

    def _num_missing(self, sequence: Sequence) -> int:
        """Blocks for all tokens of the sequence and the next one, less those it has (more, if it drafts)."""
        wanted = self._cache.blocks_for(len(sequence.all_token_ids) + 1)
        return max(0, wanted - len(sequence.cached.block_table))

    def _make_room(self, sequence: Sequence, num_tokens: int, step: Step) -> bool:
        """Room for so many tokens, at the expense of whoever comes last; False if that is the sequence itself."""
        while not self._cache.grow(sequence, num_tokens):
            victim = self.running[-1]
            if _is_scheduled(victim, step):
                return False
            self._preempt(victim)
            step.preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_rank)  # first, so that an interrupt loses no sequence
        self._stop(sequence)
        sequence.drafts = []

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._forget_computing(sequence, sequence.cached.num_computed, len(sequence.all_token_ids))
        self._cache.release(sequence)

    def _is_computed_by_another(self, sequence: Sequence) -> bool:
        """Whether the first block that is not cached yet is about to be, and by no one who is less urgent."""
        if not self._computing or sequence.wants_prompt_logprobs:
            return False
        missing = next((name for name in self._cache.names(sequence) if self._cache.blocks.find(name) is None), None)
        owner = None if missing is None else self._computing.get(missing)
        return owner is not None and owner.priority <= sequence.priority

    def _remember_computing(self, sequence: Sequence) -> None:
        if self._cache.shape.enable_prefix_cache:
            for name in self._cache.names(sequence)[len(sequence.cached.block_table) :]:
                self._computing.setdefault(name, sequence)

    def _forget_computing(self, sequence: Sequence, start: int, stop: int) -> None:
        """The blocks that end in tokens `start` to `stop` are done, or nobody works on them any more."""
        size = self._cache.shape.block_size
        for name in sequence.cached.names[start // size : stop // size]:
            if self._computing.get(name) is sequence:
                del self._computing[name]


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank


def _is_scheduled(sequence: Sequence, step: Step) -> bool:
    return any(each.sequence is sequence for each in step.scheduled)
