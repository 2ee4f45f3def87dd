"""What one pass of training reads. Shapes: R rows, T tokens, N learned tokens."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from codemill.data.packing import PADDING_DOCUMENT, PackedRows

_WIDTH_STEP = 64


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch of packed documents, all tensors [R, T]. See `PackedRows` for their meaning.

    `weights` are for cross entropy: fp32, of predicting the token at that place from those before it.
    """

    input_ids: Tensor
    position_ids: Tensor
    document_ids: Tensor
    weights: Tensor

    @classmethod
    def of(cls, rows: PackedRows) -> "Batch":
        """These rows, without the columns at their end that are padding in all of them, but for a few.

        oneDNN compiles the products of every number of tokens anew, and keeps them: there are to be few such numbers.
        """
        used = np.flatnonzero((rows.document_ids != PADDING_DOCUMENT).any(axis=0))
        width = int(used[-1]) + 1 if used.size else 1
        width = min(rows.input_ids.shape[1], -(-width // _WIDTH_STEP) * _WIDTH_STEP)
        return cls(
            input_ids=_long(rows.input_ids[:, :width]),
            position_ids=_long(rows.position_ids[:, :width]),
            document_ids=_long(rows.document_ids[:, :width]),
            weights=torch.from_numpy(rows.loss_weights[:, :width].astype(np.float32)),
        )

    @property
    def learned(self) -> Tensor:
        """Which places predict a token that counts: bool [R, T - 1], of the place before that token."""
        return self.weights[:, 1:] > 0

    @property
    def num_tokens(self) -> int:
        """Tokens of documents, so without padding."""
        return int((self.document_ids != PADDING_DOCUMENT).sum())

    def to(self, device: torch.device) -> "Batch":
        moved = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: x.to(device) for name, x in moved.items() if isinstance(x, Tensor)})


def _long(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
