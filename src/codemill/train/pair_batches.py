"""Batches of preference pairs. Shapes: R rows, T tokens, P pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codemill.data.packed_pairs import PackedPairs, PairRows
from codemill.data.packing import PADDING_DOCUMENT
from codemill.train.batch import Batch
from codemill.train.chunked import chunked_log_probs, head_of
from codemill.train.config import LoopConfig
from codemill.train.policy import Policy
from codemill.train.source import row_order

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PairBatch(Batch):
    """Packed rows in which both documents of each pair are.

    sequence_ids [R, T]: 2 p in the chosen document of the batch's pair p, 2 p + 1 in the rejected one, -1 on padding.
    reference [P, 2]: log-probabilities of both answers under the reference, 0 where there is none.
    """

    sequence_ids: Tensor
    reference: Tensor

    @classmethod
    def of_pairs(cls, rows: PairRows, reference: Float32 | None) -> "PairBatch":
        """reference [pairs, 2]: of all pairs of the data."""
        batch = Batch.of(rows.rows)
        firsts = torch.from_numpy(np.cumsum(rows.pairs_in_row) - rows.pairs_in_row)
        sequence_ids = torch.where(
            batch.document_ids == PADDING_DOCUMENT, PADDING_DOCUMENT, batch.document_ids + 2 * firsts[:, None]
        )
        known = np.zeros((len(rows.pairs), 2), np.float32) if reference is None else reference[rows.pairs]
        return cls(**vars(batch), sequence_ids=sequence_ids, reference=torch.from_numpy(known))


class PairSource:
    """Packed rows of pairs in an order of their own in each epoch; see `PackedSource`."""

    def __init__(
        self,
        pairs: PackedPairs,
        reference: Float32 | None,
        loop: LoopConfig,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.pairs, self.reference, self.loop = pairs, reference, loop
        self._share = slice(rank, None, num_processes)

    def micro_batches(self, step: int) -> list[PairBatch]:
        size = self.loop.rows_per_step
        indices = row_order(len(self.pairs), self.loop.seed, step * size, size)[self._share]
        return pair_batches(self.pairs, self.reference, indices, self.loop.rows_per_micro_batch)


def pair_batches(pairs: PackedPairs, reference: Float32 | None, rows: Sequence[int], size: int) -> list[PairBatch]:
    """These rows, `size` in a batch."""
    starts = range(0, len(rows), size)
    return [PairBatch.of_pairs(pairs.take(rows[start : start + size]), reference) for start in starts]


def answer_log_probs(policy: Policy, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the answers, summed over their learned tokens, and how many those are: both [P, 2]."""
    learned = batch.learned
    hidden = policy.hidden_states(batch)[:, :-1][learned]  # [N, D]
    log_probs = chunked_log_probs(hidden, head_of(policy), batch.input_ids[:, 1:][learned])
    sequence_ids = batch.sequence_ids[:, 1:][learned]
    empty = log_probs.new_zeros(batch.reference.numel())
    sums = empty.index_add(0, sequence_ids, log_probs)
    counts = empty.index_add(0, sequence_ids, torch.ones_like(log_probs))
    return sums.view(-1, 2), counts.view(-1, 2)
