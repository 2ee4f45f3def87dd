"""Direct preference optimisation: of two answers to a prompt, one is to become likelier than the other.

With `loss = "sigmoid"` DPO, with "ipo" and "simpo" what `preference.py` says. The reference of the first two is the
model that the run starts from; what it thinks of the answers is computed once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from codemill.data.conversations import PreferencePair, PreferencePairs, load_pairs
from codemill.data.packed_pairs import PackedPairs, split_pairs
from codemill.errors import UsageError
from codemill.train.batch import Batch
from codemill.train.config import LoopConfig
from codemill.train.dpo_config import DpoConfig, DpoSection
from codemill.train.fine_tuning import Benchmark, FineTuning
from codemill.train.loop import Trainer
from codemill.train.objective import Loss
from codemill.train.pair_batches import Float32, PairBatch, PairSource, answer_log_probs, pair_batches
from codemill.train.policy import Policy
from codemill.train.preference import ipo_losses, sigmoid_losses, simpo_losses
from codemill.train.reference import reference_log_probs
from codemill.train.run import DataPlan, RunPlan


class Preference:
    """The mean loss of all pairs of a step, and the mean cross entropy of their chosen answers if it has a weight."""

    def __init__(self, settings: DpoSection) -> None:
        self.settings = settings

    def counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """How many pairs, and how many tokens the chosen answers have."""
        pairs = [cast(PairBatch, batch) for batch in batches]
        counts = {"pairs": float(sum(len(batch.reference) for batch in pairs))}
        if self.settings.sft_weight:
            counts["chosen_tokens"] = float(sum(_num_chosen_tokens(batch) for batch in pairs))
        return counts

    def loss(self, policy: Policy, batch: Batch, totals: Mapping[str, float]) -> Loss:
        assert isinstance(batch, PairBatch)
        sums, counts = answer_log_probs(policy, batch)  # [P, 2]
        value = self.losses(sums, counts, batch.reference).sum() / totals["pairs"]
        pairs = self.metrics(sums.detach(), counts, batch.reference)
        metrics = {name: x.sum().item() / totals["pairs"] for name, x in pairs.items()}
        if self.settings.sft_weight:
            cross_entropy = -sums[:, 0].sum() / totals["chosen_tokens"]
            value = value + self.settings.sft_weight * cross_entropy
            metrics["chosen_cross_entropy"] = cross_entropy.item()
        return Loss(value, metrics)

    def losses(self, sums: Tensor, counts: Tensor, reference: Tensor) -> Tensor:
        """Log-probabilities of both answers, their numbers of tokens, and the reference's, all [P, 2] -> [P]."""
        settings = self.settings
        ratios, lengths = sums - reference, counts.clamp(min=1.0)
        if settings.loss == "sigmoid":
            return sigmoid_losses(ratios[:, 0], ratios[:, 1], settings.beta, settings.label_smoothing)
        if settings.loss == "ipo":
            means = ratios / lengths
            return ipo_losses(means[:, 0], means[:, 1], settings.beta)
        means = sums / lengths
        return simpo_losses(means[:, 0], means[:, 1], settings.beta, settings.gamma, settings.label_smoothing)

    def metrics(self, sums: Tensor, counts: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """A value for each pair [P]. Rewards are those that the loss compares: beta times its log-ratios."""
        scores = sums - reference if self.settings.has_reference else sums / counts.clamp(min=1.0)
        chosen, rejected = (self.settings.beta * scores).unbind(1)
        return {
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "reward_margin": chosen - rejected,
            "reward_accuracy": (chosen > rejected).float(),
            "log_prob_chosen": sums[:, 0],
            "log_prob_rejected": sums[:, 1],
        }


def _num_chosen_tokens(batch: PairBatch) -> int:
    is_chosen = batch.sequence_ids[:, 1:][batch.learned] % 2 == 0
    return int(torch.count_nonzero(is_chosen))


class Dpo(FineTuning):
    """`codemill train dpo`. A row holds pairs, so it has twice the tokens that a document may have."""

    config: DpoConfig

    def __init__(self, config: DpoConfig, benchmark: Benchmark | None = None) -> None:
        super().__init__(config, benchmark)

    @cached_property
    def pairs(self) -> tuple[Sequence[PreferencePair], Sequence[PreferencePair]]:
        """To train on, and to validate with. Raises UsageError and CodemillError naming the record that is wrong."""
        settings = self.config.data
        pairs = self._load("train", settings.train)
        if settings.validation:
            return pairs, self._load("validation", settings.validation)
        if not settings.validation_fraction:
            return pairs, ()
        train, held_out = split_pairs(pairs, settings.validation_fraction, self.config.loop.seed)
        if not train or not held_out:
            raise UsageError(
                f"data.validation_fraction = {settings.validation_fraction} of {len(pairs):,} pairs leaves nothing on "
                "one side: give more data, or data.validation"
            )
        return train, held_out

    def _load(self, name: str, paths: Sequence[str]) -> PreferencePairs:
        with self.reading(paths) as progress:
            pairs = load_pairs(paths, self.tokenizer, self.config.data, progress)
        self.note(name, pairs.documents.counts)
        return pairs

    @cached_property
    def rows(self) -> PackedPairs:
        return self._pack(self.pairs[0])

    @property
    def loop(self) -> LoopConfig:
        return self.config.loop.for_rows(len(self.rows))

    def plan(self) -> RunPlan:
        self.check()
        pairs, loop = self.pairs[0], self.loop
        data = DataPlan(2 * len(pairs), len(self.rows), self.rows.num_tokens, self.rows.num_learned)
        plan = self.plan_of(data, loop)
        memory = self._memory(loop.rows_per_micro_batch * self.rows.capacity)
        return replace(plan, context=self.rows.capacity, memory=memory)

    def start(self) -> Trainer:
        self.check()
        with self.parallel.main_first():
            self.claim()
            loop, held_out = self.loop, self.pairs[1]
        policy = self.load_policy()
        self.parallel.wrap(policy, loop.precision)  # the reference is computed on the devices of all processes
        source = PairSource(self.rows, self._reference(policy, self.rows), loop, *self.parallel.share_of_rows)
        validation: dict[str, Sequence[Batch]] = {}
        if held_out:
            rows = self._pack(held_out)
            reference = self._reference(policy, rows)
            validation["validation"] = pair_batches(rows, reference, range(len(rows)), loop.rows_per_micro_batch)
        return Trainer(
            *(policy, self.balanced(Preference(self.config.dpo)), source, validation),
            *(loop, self.config.optimizer, self.directory),
            evaluate=self.evaluation(policy),
            parallel=self.parallel,
        )

    def _reference(self, policy: Policy, rows: PackedPairs) -> Float32 | None:
        if not self.config.dpo.has_reference:
            return None
        return reference_log_probs(policy, rows, self.directory, self.loop, self.parallel)

    def _pack(self, pairs: Sequence[PreferencePair]) -> PackedPairs:
        settings = self.config.data
        return PackedPairs(pairs, 2 * settings.context, self.tokenizer.pad_token_id or 0, settings.packing)
