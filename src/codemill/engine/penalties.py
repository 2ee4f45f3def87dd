"""Penalties for tokens that occurred before. Shapes: B rows, V vocabulary."""

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from codemill.engine.sequence import Sequence


class Penalties:
    """What each row has seen so far, and what that costs.

    Repetition (Keskar et al. 2019, arXiv:1909.05858) counts prompt and output: a positive logit is divided by the
    penalty, a negative one multiplied. Presence and frequency count the output only: subtracted once, and once per
    occurrence.
    """

    def __init__(self, sequences: SequenceOf[Sequence], vocab_size: int, device: torch.device) -> None:
        shape = (len(sequences), vocab_size)
        self._repetition = _column([row.distribution.repetition_penalty for row in sequences], device)
        self._presence = _column([row.params.presence_penalty for row in sequences], device)
        self._frequency = _column([row.params.frequency_penalty for row in sequences], device)
        self._factors = torch.ones(shape, device=device)
        self._counts: Tensor | None = None
        if any(row.params.presence_penalty or row.params.frequency_penalty for row in sequences):
            self._counts = torch.zeros(shape, device=device)
        for row, sequence in enumerate(sequences):
            output = torch.tensor(sequence.token_ids, dtype=torch.long, device=device)
            prompt = torch.tensor(sequence.prompt_token_ids, dtype=torch.long, device=device)
            self._factors[row, torch.cat((prompt, output))] = sequence.distribution.repetition_penalty
            if self._counts is not None:
                self._counts[row] = torch.bincount(output, minlength=vocab_size)

    @staticmethod
    def are_wanted(sequences: SequenceOf[Sequence]) -> bool:
        """Whether any of these rows has a penalty."""
        return any(
            row.distribution.repetition_penalty != 1 or row.params.presence_penalty or row.params.frequency_penalty
            for row in sequences
        )

    def apply(self, logits: Tensor) -> Tensor:
        """Logits fp32 [B, V] -> penalised logits."""
        # Two clamps instead of a choice by sign: the same values, and ten times faster on a CPU.
        logits = logits.clamp(min=0) / self._factors + logits.clamp(max=0) * self._factors
        if self._counts is not None:
            logits = logits - self._frequency * self._counts - self._presence * self._counts.clamp(max=1)
        return logits

    def record(self, tokens: Tensor) -> None:
        """Count the tokens [B] that were chosen."""
        self._factors.scatter_(1, tokens[:, None], self._repetition)
        if self._counts is not None:
            self._counts.scatter_add_(1, tokens[:, None], torch.ones_like(self._repetition))


def _column(values: list[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]
