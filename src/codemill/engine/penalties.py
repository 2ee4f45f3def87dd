"""Penalties for tokens that occurred before. Shapes: B rows, V vocabulary, L tokens seen."""

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from codemill.engine.sequence import Sequence


class Penalties:
    """What each row has seen so far, and what that costs.

    Repetition (Keskar et al. 2019, arXiv:1909.05858) counts prompt and output: a positive logit is divided by the
    penalty, a negative one multiplied. Presence and frequency count the output only: subtracted once, and once per
    occurrence. Only the logits of tokens that were seen are touched, since the vocabulary is large.
    """

    def __init__(self, sequences: SequenceOf[Sequence], vocab_size: int, device: torch.device) -> None:
        self._repetition = _column([row.distribution.repetition_penalty for row in sequences], device)
        self._presence = _column([row.params.presence_penalty for row in sequences], device)
        self._frequency = _column([row.params.frequency_penalty for row in sequences], device)
        self._seen = _seen_ids(sequences).to(device)  # [B, L], an id may occur more than once
        self._counts = torch.zeros(len(sequences), vocab_size, device=device)
        for row, sequence in enumerate(sequences):
            output = torch.tensor(sequence.token_ids, dtype=torch.long, device=device)
            self._counts[row] = output.bincount(minlength=vocab_size)

    @staticmethod
    def are_wanted(sequences: SequenceOf[Sequence]) -> bool:
        """Whether any of these rows has a penalty."""
        return any(
            row.distribution.repetition_penalty != 1 or row.params.presence_penalty or row.params.frequency_penalty
            for row in sequences
        )

    def apply(self, logits: Tensor) -> Tensor:
        """Logits fp32 [B, V] -> penalised logits."""
        seen, counts = logits.gather(1, self._seen), self._counts.gather(1, self._seen)
        seen = torch.where(seen > 0, seen / self._repetition, seen * self._repetition)
        seen = seen - self._frequency * counts - self._presence * counts.clamp(max=1)
        return logits.scatter(1, self._seen, seen)

    def record(self, tokens: Tensor) -> None:
        """Count the tokens [B] that were chosen."""
        column = tokens[:, None]
        self._seen = torch.cat((self._seen, column), dim=1)
        self._counts.scatter_add_(1, column, torch.ones_like(self._repetition))


def _seen_ids(sequences: SequenceOf[Sequence]) -> Tensor:
    """Ids of prompt and output [B, L]; short rows are filled up with an id of their own."""
    rows = [(*sequence.prompt_token_ids, *sequence.token_ids) for sequence in sequences]
    longest = max(map(len, rows))
    return torch.tensor([row + row[:1] * (longest - len(row)) for row in rows])


def _column(values: list[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]
