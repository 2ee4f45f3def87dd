"""What a run minimises. Every method of training is an objective and a source of batches; the loop is one.

A step's loss is a sum of terms (cross entropy, policy gradient, reverse KL), each the sum over its tokens divided by
their count in the whole step: in all micro-batches and on all processes. So it does not matter how a step is cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from codemill.train.batch import Batch
from codemill.train.chunked import chunked_cross_entropy, head_of
from codemill.train.policy import Policy


@dataclass(frozen=True, eq=False)
class Loss:
    """A micro-batch's part of a step's loss: `value`, a scalar to differentiate, and what to report beside it.

    The parts of all micro-batches and processes add up, those of `value` and of each of the `metrics`.
    """

    value: Tensor
    metrics: Mapping[str, float]


class Objective(Protocol):
    """One way to train."""

    def counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """What each term of the loss is divided by, as far as these micro-batches of a step contribute to it."""
        ...

    def loss(self, policy: Policy, batch: Batch, totals: Mapping[str, float]) -> Loss:
        """The part of a micro-batch; `totals` are the counts of the whole step."""
        ...


@runtime_checkable
class ReportsSteps(Protocol):
    """An objective that has more to report once a step is done."""

    def finish_step(self) -> dict[str, float]:
        """What to report, the same on all processes."""
        ...


@runtime_checkable
class HasState(Protocol):
    """An objective that remembers something from step to step: a part of checkpoints, the same on all processes."""

    def state(self) -> dict[str, Tensor]:
        """What it remembers, by names of its own."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        ...


class CrossEntropy:
    """Pre-training and supervised fine-tuning: the weighted mean of -log p(token), in nats."""

    def counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """The sum of the weights."""
        return {"cross_entropy": sum(batch.weights[:, 1:].double().sum().item() for batch in batches)}

    def loss(self, policy: Policy, batch: Batch, totals: Mapping[str, float]) -> Loss:
        """Logits are made for learned tokens only, some at a time."""
        learned = batch.learned
        hidden = policy.hidden_states(batch)[:, :-1][learned]  # [N, D]
        targets, weights = batch.input_ids[:, 1:][learned], batch.weights[:, 1:][learned]
        value = chunked_cross_entropy(hidden, head_of(policy), targets, weights) / totals["cross_entropy"]
        return Loss(value, {})
