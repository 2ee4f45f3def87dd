"""What a student minimises: how far it is from its teachers. Shapes: R rows, T tokens, D model, N learned tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from codemill.models import CausalLM
from codemill.train.batch import Batch
from codemill.train.chunked import (
    HeadFunction,
    TokenFunction,
    chunked_cross_entropy,
    chunked_log_probs,
    chunked_sum,
    head_of,
)
from codemill.train.distill_config import DistillSection
from codemill.train.losses import forward_kl, jensen_shannon, policy_gradient, reverse_kl, weighted_sum
from codemill.train.objective import Loss
from codemill.train.policy import Policy
from codemill.train.taught_batches import TaughtBatch


@dataclass(frozen=True, eq=False)
class Lesson:
    """The learned tokens that one teacher teaches: hidden states [N, D] of student and teacher, targets and weights."""

    hidden: Tensor
    teacher_hidden: Tensor
    targets: Tensor
    weights: Tensor


class Distillation:
    """The mean over learned tokens of a divergence of student and teacher, and of cross entropy if it has a weight.

    A batch takes one forward pass of each teacher that it has rows of.
    """

    def __init__(self, teachers: Sequence[CausalLM], settings: DistillSection) -> None:
        self.teachers, self.settings = teachers, settings

    def counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """The sum of the weights."""
        return {"tokens": sum(batch.weights[:, 1:].double().sum().item() for batch in batches)}

    def loss(self, policy: Policy, batch: Batch, totals: Mapping[str, float]) -> Loss:
        assert isinstance(batch, TaughtBatch)
        hidden = policy.hidden_states(batch)[:, :-1]
        terms = [
            self._taught(policy, _lesson(hidden, batch, index, self.teachers[index]), self.teachers[index])
            for index in batch.teachers.unique().tolist()
        ]
        value = torch.stack([part.value for part in terms]).sum() / totals["tokens"]
        names = terms[0].metrics
        return Loss(value, {name: sum(part.metrics[name] for part in terms) / totals["tokens"] for name in names})

    def _taught(self, policy: Policy, lesson: Lesson, teacher: CausalLM) -> Loss:
        """The sums over one teacher's tokens."""
        sampled = self.settings.loss == "sampled_reverse_kl"
        part = _sampled(policy, lesson, teacher) if sampled else self._whole(policy, lesson, teacher)
        weight = self.settings.cross_entropy_weight
        if not weight:
            return part
        cross_entropy = chunked_cross_entropy(lesson.hidden, head_of(policy), lesson.targets, lesson.weights)
        metrics = {**part.metrics, "cross_entropy": cross_entropy.item()}
        return Loss(part.value + weight * cross_entropy, metrics)

    def _whole(self, policy: Policy, lesson: Lesson, teacher: CausalLM) -> Loss:
        """Over the whole vocabulary; neither's logits are ever there for all tokens."""
        divergence = self._divergence

        def compare(logits: Tensor, teacher_hidden: Tensor) -> Tensor:
            with torch.no_grad():
                teacher_logits = teacher.logits(teacher_hidden)
            return divergence(logits, teacher_logits)

        value = chunked_sum(compare, lesson.hidden, head_of(policy), lesson.weights, lesson.teacher_hidden)
        return Loss(value, {self.settings.loss: value.item()})

    @property
    def _divergence(self) -> TokenFunction:
        if self.settings.loss == "jensen_shannon":
            return partial(jensen_shannon, beta=self.settings.beta)
        return reverse_kl if self.settings.loss == "reverse_kl" else forward_kl


def _lesson(hidden: Tensor, batch: TaughtBatch, index: int, teacher: CausalLM) -> Lesson:
    """hidden [R, T - 1, D]: of all rows."""
    rows, taught = batch.taught_by(index)
    with torch.no_grad():
        teacher_hidden = teacher.hidden_states(
            taught.input_ids, position_ids=taught.position_ids, document_ids=taught.document_ids
        )
    learned = taught.learned
    return Lesson(
        hidden[rows][learned],
        teacher_hidden[:, :-1][learned].to(teacher.dtype),
        taught.input_ids[:, 1:][learned],
        taught.weights[:, 1:][learned],
    )


def _sampled(policy: Policy, lesson: Lesson, teacher: CausalLM) -> Loss:
    """Policy gradient with the advantage log p_teacher - log p_student of each token that the student chose.

    In expectation over what it chooses, this is the gradient of the reverse KL at that place.
    """
    log_probs = chunked_log_probs(lesson.hidden, head_of(policy), lesson.targets)
    with torch.no_grad():
        head = HeadFunction(teacher.logits, teacher.config.vocab_size)
        advantages = chunked_log_probs(lesson.teacher_hidden, head, lesson.targets) - log_probs
    value = policy_gradient(log_probs, log_probs.detach(), advantages, lesson.weights).value
    return Loss(value, {"reverse_kl": -weighted_sum(advantages, lesson.weights).item()})
