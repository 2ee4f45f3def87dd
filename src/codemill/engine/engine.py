"""The engine: requests go in, each step computes some tokens of some of them, and finished ones come out."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from codemill.engine.cache_manager import CacheManager
from codemill.engine.disk_cache import DiskCache
from codemill.engine.metrics import EngineMetrics
from codemill.engine.request import Request
from codemill.engine.runner import ForwardPass, ModelRunner
from codemill.engine.sampler import NO_TOKEN, Sampler
from codemill.engine.scheduler import ScheduledSequence, Scheduler, Step
from codemill.engine.sequence import SampledToken, Sequence
from codemill.engine.speculative import Speculation
from codemill.engine_config import EngineConfig
from codemill.errors import CodemillError
from codemill.models.cache import Cache


@dataclass(frozen=True)
class EngineParts:
    """What an engine is made of. memory: all caches, the runner's and the drafter's; disk: what outlives them."""

    config: EngineConfig
    cache: CacheManager
    runner: ModelRunner
    speculation: Speculation
    memory: list[Cache]
    disk: DiskCache | None = None


class Engine:
    """Continuous batching over one model. Not thread-safe: one caller at a time.

    `add` puts a request in the queue, `step` computes one pass, `abort` takes a request out. A sequence that fails has
    an `error`, and no other is touched by it.
    """

    def __init__(self, parts: EngineParts) -> None:
        self.cache = parts.cache
        self.runner = parts.runner
        self.scheduler = Scheduler(parts.config, parts.cache)
        self.metrics = EngineMetrics()
        self._speculation = parts.speculation
        self._memory = parts.memory
        self._disk = parts.disk
        self.is_asleep = False
        self._sampler = self._new_sampler([])
        self._sampled: list[Sequence] = []

    @property
    def is_idle(self) -> bool:
        return self.scheduler.is_idle

    def add(self, request: Request) -> None:
        """Queue the sequences of a request."""
        for sequence in request.sequences:
            sequence.added_time = request.start
            self.metrics.request_received(len(sequence.prompt_token_ids))
            self.scheduler.add(sequence)

    def abort(self, request: Request, stop_reason: str | None = None) -> None:
        """Stop what is not finished of a request; what it computed stays in the prefix cache."""
        for sequence in self._take_out(request):
            sequence.finish("abort", stop_reason)
            self._count_finished(sequence)
        self._set_gauges()

    def fail(self, request: Request, error: CodemillError) -> None:
        """Stop what is not finished of a request, because of an error."""
        for sequence in self._take_out(request):
            sequence.fail(error)
            self._count_finished(sequence)
        self._set_gauges()

    def weights_changed(self) -> None:
        """Nothing that was computed with other weights may be used any more: prompts that run are computed again.

        From now on nothing is kept on disk, since what lies there is of the weights that were loaded.
        """
        self.cache.keeper = None
        self._forget()

    def close(self) -> None:
        """Write what is on its way to disk."""
        if self._disk is not None:
            self._disk.store.close()

    def sleep(self) -> None:
        """Free the memory of the cache. What was running goes on after `wake`, and is then computed again."""
        self._forget()
        for cache in self._memory:
            cache.free()
        self.is_asleep = True

    def wake(self) -> None:
        """Take the memory again."""
        if self.is_asleep:
            for cache in self._memory:
                cache.refill()
        self.is_asleep = False

    # Not a context around the caller's loop: a stream hands control back between steps, outside inference mode.
    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Compute one pass -> the sequences that have new tokens.

        Raises what the network raises; everything that was running is then computed again.
        """
        if self.is_asleep:
            raise CodemillError("the engine sleeps: wake it first")
        step = self.scheduler.schedule()
        self.metrics.preemptions += len(step.preempted)
        if not step.scheduled:
            return []
        self._note_start(step)
        try:
            done = self.runner.run(step, self.cache.state_copies)
            self.runner.record_prompt_logprobs(done, step)
            chosen = [each.sequence for each in step.scheduled if each.reaches_end]
            beginning = [sequence for sequence in chosen if not sequence.token_ids]
            num_accepted = self._choose(done, step)
            done.context.commit(num_accepted)
            self._speculation.follow(done, step, num_accepted)
        except BaseException:
            self.cache.cancel()
            self.scheduler.preempt_all()
            raise
        self.scheduler.complete(step, num_accepted)
        self._count_first_tokens(beginning)
        self._count_step(step, num_accepted)
        self._speculation.propose([s for s in self.scheduler.running if s.num_pending == 1])
        return chosen

    def _take_out(self, request: Request) -> list[Sequence]:
        """Schedule a request no more -> its sequences that are not finished."""
        for sequence in request.sequences:
            self.scheduler.remove(sequence)
        return [sequence for sequence in request.sequences if sequence.finish_reason is None]

    def _forget(self) -> None:
        self.scheduler.preempt_all()
        self.cache.forget_all()

    def _choose(self, done: ForwardPass, step: Step) -> list[int]:
        """Give sequences their next tokens -> how many drafts of each scheduled sequence were right.

        A sequence goes on as long as its token is the one that was drafted, since the logits that follow it are known.
        """
        num_accepted = [0] * len(step.scheduled)
        choosing = [(i, each) for i, each in enumerate(step.scheduled) if each.reaches_end]
        if not choosing:
            return num_accepted
        logits, first_rows = self._logits(done, choosing)
        position = 0
        while choosing:
            rows = [first_rows[i] + position for i, _ in choosing]
            tokens = self._sample([each.sequence for _, each in choosing], logits, rows)
            going_on = []
            for (i, each), token in zip(choosing, tokens, strict=True):
                _append(each.sequence, token)
                if position < len(each.drafts) and token.token_id == each.drafts[position]:
                    num_accepted[i] += 1
                    if each.sequence.finish_reason is None:
                        going_on.append((i, each))
            choosing, position = going_on, position + 1
        return num_accepted

    def _logits(
        self, done: ForwardPass, choosing: list[tuple[int, ScheduledSequence]]
    ) -> tuple[Tensor, dict[int, int]]:
        """Logits [n, V] after the last certain token and after each draft, and where each sequence's begin."""
        rows: list[int] = []
        first_rows = {}
        for i, each in choosing:
            first_rows[i] = len(rows)
            first = done.rows[i] + each.num_new - 1
            rows += range(first, first + 1 + len(each.drafts))
        sequences, counts = [each.sequence for _, each in choosing], [1 + len(each.drafts) for _, each in choosing]
        hidden = done.hidden if len(rows) == done.hidden.shape[0] else done.hidden[rows]
        return self.runner.logits(hidden, sequences, counts), first_rows

    def _sample(self, sequences: list[Sequence], logits: Tensor, rows: list[int]) -> list[SampledToken]:
        if sequences != self._sampled:
            self._sampler, self._sampled = self._new_sampler(sequences), sequences
        return self._sampler.sample(logits if len(rows) == logits.shape[0] else logits[rows])

    def _new_sampler(self, sequences: list[Sequence]) -> Sampler:
        model = self.runner.model
        return Sampler(sequences, model.config.vocab_size, model.device)

    def _note_start(self, step: Step) -> None:
        now = time.perf_counter()
        for each in step.scheduled:
            sequence = each.sequence
            if not sequence.start_time:
                sequence.start_time, sequence.num_reused = now, sequence.cached.num_computed
                self.metrics.request_started(now - sequence.added_time, sequence.num_reused)

    def _count_first_tokens(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            if sequence.token_ids:
                self.metrics.first_token(sequence.first_token_time - sequence.added_time)

    def _count_step(self, step: Step, num_accepted: list[int]) -> None:
        for each in step.scheduled:
            if each.sequence.finish_reason is not None:
                self._count_finished(each.sequence)
        drafted = [pair for pair in zip(step.scheduled, num_accepted, strict=True) if pair[0].drafts]
        self.metrics.step_done(
            num_drafts=sum(len(each.drafts) for each, _ in drafted if not each.sequence.is_forced),
            num_accepted=sum(accepted for each, accepted in drafted if not each.sequence.is_forced),
            num_forced=sum(accepted for each, accepted in drafted if each.sequence.is_forced),
        )
        self._set_gauges()

    def _set_gauges(self) -> None:
        cache, metrics = self.cache, self.metrics
        metrics.running, metrics.waiting = len(self.scheduler.running), len(self.scheduler.waiting)
        metrics.kv_blocks_used, metrics.kv_blocks_total = cache.blocks.num_used, cache.blocks.num_blocks
        if cache.states is not None:
            metrics.state_slots_used, metrics.state_slots_total = cache.states.num_used, cache.states.num_slots

    def _count_finished(self, sequence: Sequence) -> None:
        assert sequence.finish_reason is not None
        num_tokens, finish = len(sequence.token_ids), sequence.finish_time
        decode_seconds = finish - sequence.first_token_time if num_tokens else 0.0
        total_seconds = finish - sequence.added_time
        self.metrics.request_finished(sequence.finish_reason, num_tokens, total_seconds, decode_seconds)


def _append(sequence: Sequence, token: SampledToken) -> None:
    """Take the token; what is wrong with it ends this sequence alone."""
    if token.token_id == NO_TOKEN:
        position = len(sequence.token_ids) + 1
        sequence.fail(
            CodemillError(
                f"the model produced NaN or infinite logits at output token {position}: "
                "check the weights, or try dtype='float32'"
            )
        )
        return
    try:
        sequence.append(token)
    except CodemillError as error:
        sequence.fail(error)
