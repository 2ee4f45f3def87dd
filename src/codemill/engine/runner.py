"""Runs the network over what the scheduler chose. Shapes: N tokens of the pass, D model, V vocabulary, n rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from codemill.engine.sampler import top_logprobs
from codemill.engine.scheduler import ScheduledSequence, Step
from codemill.engine.sequence import Sequence
from codemill.kernels.segments import Segment, Segments
from codemill.models.cache import Cache
from codemill.models.context import ForwardContext
from codemill.models.decoder import CausalLM
from codemill.models.lora import adapted_rows

PROMPT_LOGPROB_ROWS = 64  # rows of logits at a time, which are as wide as the vocabulary


@dataclass(frozen=True)
class ForwardPass:
    """A pass that was computed. `rows[i]` is where scheduled sequence i begins in the tokens of the pass."""

    input_ids: Tensor  # [N]
    hidden: Tensor  # [N, D]
    context: ForwardContext
    rows: list[int]


class ModelRunner:
    """The network and its cache."""

    def __init__(self, model: CausalLM, cache: Cache) -> None:
        self.model = model
        self.cache = cache

    def run(self, step: Step, state_copies: list[tuple[int | None, int]]) -> ForwardPass:
        """Compute every token of the step, after copying the states [slots] that sequences start from."""
        self._copy_states(state_copies)
        token_ids = [token_id for each in step.scheduled for token_id in _token_ids(each)]
        input_ids = torch.tensor(token_ids, device=self.model.device)
        segments = Segments(tuple(map(_segment, step.scheduled)), self.cache.block_size, self.model.device)
        adapters = [each.sequence.adapter for each in step.scheduled]
        context = ForwardContext.build(
            self.model.config,
            self.model.dtype,
            input_ids[None],
            segments=segments,
            adapters=adapters,
            batch_invariant=self.model.is_batch_invariant,
        )
        hidden = self.model.compute(input_ids[None], context, self.cache)[0]
        return ForwardPass(input_ids, hidden, context, list(segments.starts))

    def logits(self, hidden: Tensor, sequences: list[Sequence], counts: list[int]) -> Tensor:
        """Logits [n, V] of hidden states [n, D]: the first `counts[0]` are of the first sequence, and so on."""
        adapters = [sequence.adapter for sequence in sequences]
        return self.model.logits(hidden, adapted_rows(adapters, counts, hidden.device) if any(adapters) else ())

    def record_prompt_logprobs(self, done: ForwardPass, step: Step) -> None:
        """Give the sequences that ask for it the log-probabilities of the prompt tokens that this pass predicts."""
        for first, each in zip(done.rows, step.scheduled, strict=True):
            sequence = each.sequence
            if sequence.params.prompt_logprobs is None or not sequence.wants_prompt_logprobs:
                continue
            start = sequence.cached.num_computed
            stop = min(start + each.num_new, len(sequence.prompt_token_ids) - 1)
            del sequence.prompt_logprobs[start:]  # of a pass before the sequence was preempted
            for begin in range(start, stop, PROMPT_LOGPROB_ROWS):
                end = min(begin + PROMPT_LOGPROB_ROWS, stop)
                hidden = done.hidden[first + begin - start : first + end - start]
                targets = list(sequence.prompt_token_ids[begin + 1 : end + 1])
                count = sequence.params.prompt_logprobs or 0
                logits = self.logits(hidden, [sequence], [len(targets)])
                sequence.prompt_logprobs += _logprobs_of(logits, targets, count)

    def record_hidden_states(self, done: ForwardPass, step: Step) -> None:
        """Give the sequences that ask for it the hidden state of their prompt's last token."""
        for first, each in zip(done.rows, step.scheduled, strict=True):
            sequence = each.sequence
            if sequence.params.hidden_state and each.reaches_end and not sequence.token_ids:
                sequence.hidden_state = done.hidden[first + each.num_new - 1].float().tolist()

    def _copy_states(self, copies: list[tuple[int | None, int]]) -> None:
        for source, target in copies:
            for layer in self.cache.linear_states:
                if source is None:
                    layer.reset_slot(target)
                elif source != target:
                    layer.copy_slot(source, target)


def _token_ids(each: ScheduledSequence) -> Iterator[int]:
    start = each.sequence.cached.num_computed
    yield from each.sequence.all_token_ids[start : start + each.num_new]
    yield from each.drafts


def _segment(each: ScheduledSequence) -> Segment:
    cached = each.sequence.cached
    return Segment(
        num_new=each.num_new + len(each.drafts),
        num_past=cached.num_computed,
        block_table=cached.block_table,
        state_slot=cached.state_slot,
        num_uncertain=len(each.drafts),
        checkpoints=each.checkpoints,
    )


def _logprobs_of(logits: Tensor, targets: list[int], count: int) -> list[dict[int, float]]:
    """For each row of logits [n, V]: the target's log-probability, then those of the `count` likeliest."""
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = logprobs.gather(1, torch.tensor(targets, device=logits.device)[:, None])[:, 0].tolist()
    tops = top_logprobs(logprobs, [count] * len(targets)) if count else [{}] * len(targets)
    return [{target: value} | top for target, value, top in zip(targets, chosen, tops, strict=True)]
