"""What an engine's metrics learn of its requests and steps. No torch here."""

import time

from codemill.engine.cache_manager import CacheManager
from codemill.engine.metrics import EngineMetrics
from codemill.engine.scheduler import Scheduler, Step
from codemill.engine.sequence import Sequence


class EngineCounts:
    """Counts what happens in an engine."""

    def __init__(self, scheduler: Scheduler, cache: CacheManager) -> None:
        self.metrics = EngineMetrics()
        self._scheduler = scheduler
        self._cache = cache

    def pass_begins(self, step: Step) -> None:
        """Sequences that are computed for the first time have started."""
        now = time.perf_counter()
        for each in step.scheduled:
            sequence = each.sequence
            if not sequence.start_time:
                sequence.start_time, sequence.num_reused = now, sequence.cached.num_computed
                self.metrics.request_started(now - sequence.added_time, sequence.num_reused)

    def first_tokens(self, sequences: list[Sequence]) -> None:
        """Those of these sequences that have a token have just got their first."""
        for sequence in sequences:
            if sequence.token_ids:
                self.metrics.first_token(sequence.first_token_time - sequence.added_time)

    def step_done(self, step: Step, num_accepted: list[int]) -> None:
        """A pass was computed, and so many drafts of each sequence turned out right."""
        for each in step.scheduled:
            if each.sequence.finish_reason is not None:
                self.finished(each.sequence)
        drafted = [pair for pair in zip(step.scheduled, num_accepted, strict=True) if pair[0].drafts]
        self.metrics.step_done(
            num_drafts=sum(len(each.drafts) for each, _ in drafted if not each.sequence.is_forced),
            num_accepted=sum(accepted for each, accepted in drafted if not each.sequence.is_forced),
            num_forced=sum(accepted for each, accepted in drafted if each.sequence.is_forced),
        )
        self.set_gauges()

    def set_gauges(self) -> None:
        """Note how much is running, waiting and in use."""
        cache, metrics = self._cache, self.metrics
        metrics.running, metrics.waiting = len(self._scheduler.running), len(self._scheduler.waiting)
        metrics.kv_blocks_used, metrics.kv_blocks_total = cache.blocks.num_used, cache.blocks.num_blocks
        if cache.states is not None:
            metrics.state_slots_used, metrics.state_slots_total = cache.states.num_used, cache.states.num_slots

    def finished(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        assert sequence.finish_reason is not None
        num_tokens, finish = len(sequence.token_ids), sequence.finish_time
        decode_seconds = finish - sequence.first_token_time if num_tokens else 0.0
        total_seconds = finish - sequence.added_time
        self.metrics.request_finished(sequence.finish_reason, num_tokens, total_seconds, decode_seconds)
