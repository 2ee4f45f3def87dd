"""Packed rows of random documents, and what a model makes of them. Shapes: R rows, T tokens, N documents."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.models import CausalLM

# Around the chunks of Gated DeltaNet (64), documents of one token, a row full of one, and rows with padding.
ROWS = ((63, 1, 40), (64, 30, 2), (65, 1, 1, 37), (104,), (1, 20, 70))
ROW_LENGTH = 104
VOCAB_SIZE = 97  # of tests/models/reference.py


@dataclass(frozen=True)
class Packed:
    """Rows [R, T] as the network takes them; padding has document -1."""

    input_ids: Tensor
    position_ids: Tensor
    document_ids: Tensor

    @classmethod
    def draw(cls, rows: Sequence[Sequence[int]] = ROWS, length: int = ROW_LENGTH, seed: int = 0) -> "Packed":
        """Random tokens in documents of these lengths, row by row; what is left of a row is padding."""
        shape = len(rows), length
        input_ids = torch.randint(VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))
        position_ids, document_ids = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
        for row, lengths in enumerate(rows):
            start = 0
            for number, count in enumerate((*lengths, length - sum(lengths))):
                position_ids[row, start : start + count] = torch.arange(count)
                document_ids[row, start : start + count] = number if number < len(lengths) else -1
                start += count
        return cls(input_ids, position_ids, document_ids)

    @property
    def places(self) -> list[Tensor]:
        """Where each document lies: bool [R, T] each."""
        ids = [(row, number) for row, each in enumerate(self.document_ids) for number in each.unique() if number >= 0]
        rows = torch.arange(len(self.document_ids))[:, None]
        return [(rows == row) & (self.document_ids == number) for row, number in ids]

    def changed(self, place: Tensor) -> "Packed":
        """With another token in every place of one document."""
        return Packed(torch.where(place, (self.input_ids + 1) % VOCAB_SIZE, self.input_ids), *self._where())

    def _where(self) -> tuple[Tensor, Tensor]:
        return self.position_ids, self.document_ids

    def logits(self, model: CausalLM) -> Tensor:
        """[R, T, vocab]."""
        return model(self.input_ids, position_ids=self.position_ids, document_ids=self.document_ids)

    def losses(self, logits: Tensor) -> list[Tensor]:
        """Per-token cross entropy of each document, [n - 1] each, from logits of the rows."""
        return [token_losses(logits[place], self.input_ids[place]) for place in self.places]


def token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross entropy of ids [n] after the first, by logits [n, vocab] -> [n - 1]."""
    return F.cross_entropy(logits[:-1].float(), ids[1:], reduction="none")
