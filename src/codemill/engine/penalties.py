"""Penalties for tokens that occurred before. Shapes: B rows, V vocabulary, L different tokens seen."""

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch
from torch import Tensor

from codemill.engine.sequence import Sequence


class Penalties:
    """What each row has seen so far, and what that costs.

    Repetition (Keskar et al. 2019, arXiv:1909.05858) counts prompt and output: a positive logit is divided by the
    penalty, a negative one multiplied. Presence and frequency count the output only: subtracted once, and once per
    occurrence. Only the logits of tokens that were seen are touched, since the vocabulary is large.
    """

    def __init__(self, sequences: SequenceOf[Sequence], device: torch.device) -> None:
        self._rows = [row for row, sequence in enumerate(sequences) if has_penalty(sequence)]
        chosen = self._chosen = [sequences[row] for row in self._rows]
        self._repetition = _column([each.distribution.repetition_penalty for each in chosen], device)
        self._presence = _column([each.params.presence_penalty for each in chosen], device)
        self._frequency = _column([each.params.frequency_penalty for each in chosen], device)
        self._device = device

    def apply(self, logits: Tensor) -> Tensor:
        """Logits fp32 [B, V] -> penalised logits."""
        ids, counts = self._columns()
        penalised = logits[self._rows]
        seen = penalised.gather(1, ids)
        seen = torch.where(seen > 0, seen / self._repetition, seen * self._repetition)
        seen = seen - self._frequency * counts - self._presence * counts.clamp(max=1)
        logits = logits.clone()
        logits[self._rows] = penalised.scatter(1, ids, seen)
        return logits

    def _columns(self) -> tuple[Tensor, Tensor]:
        """Ids and counts [rows, L]; short rows repeat their first id, which then gets the same value again."""
        found = [sequence.seen.update(sequence.token_ids) for sequence in self._chosen]
        longest = max(len(ids) for ids, _ in found)
        padded = [np.concatenate((x, np.full(longest - len(x), x[0], x.dtype))) for pair in found for x in pair]
        ids, counts = np.stack(padded[::2]), np.stack(padded[1::2])
        return torch.from_numpy(ids).to(self._device), torch.from_numpy(counts).to(self._device)


def has_penalty(sequence: Sequence) -> bool:
    """Whether tokens that occurred before matter for the next one."""
    params = sequence.params
    return bool(sequence.distribution.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty)


def _column(values: list[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]
