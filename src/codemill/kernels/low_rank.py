"""Low-rank updates of weights, which differ among the tokens of one pass (LoRA, Hu et al. 2021, arXiv:2106.09685).

Shapes: N tokens, r rank, E experts, D model, F ffn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """Adds scale * b @ a to a weight [out, in], without ever forming the product.

    dropout: the share of the inputs of `a` that training takes away at random. gain: fp32 [out], what the rows of the
    changed weight are multiplied by (DoRA, see `models/dora.py`); only `Linear` layers may have one.
    """

    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    scale: float
    dropout: float = 0.0
    gain: Tensor | None = None

    def apply(self, x: Tensor) -> Tensor:
        """x [n, in] -> what the update adds, [n, out], before any gain."""
        if self.dropout:
            x = F.dropout(x, self.dropout)
        return self.scale * F.linear(F.linear(x, self.a), self.b)

    def amplify(self, added: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        """What is to be added to base [n, out], the layer's output, where a gain follows the update [n, out]."""
        assert self.gain is not None
        without_bias = base.clone() if bias is None else base - bias  # base itself is about to change
        # In fp32: a gain is near 1, and bf16 has no numbers between 1 and 1.0078.
        return (self.gain * added + (self.gain - 1) * without_bias).to(base.dtype)

    def look_up(self, ids: Tensor) -> Tensor:
        """Token ids [n] -> what it adds to their embeddings, [n, out], where `in` is the vocabulary."""
        return self.scale * F.linear(self.a.T[ids], self.b)


@dataclass(frozen=True)
class ExpertUpdates:
    """Updates of the stacked experts of a layer, one for each expert: of gate and up [2F, D], and of down [D, F]."""

    gate_up: Sequence[LowRank | None]
    down: Sequence[LowRank | None]


@dataclass(frozen=True)
class Updates:
    """All that an adapter changes: weights of `Linear` layers, stacked experts, and embeddings, by module names."""

    linears: Mapping[str, LowRank]
    experts: Mapping[str, ExpertUpdates]
    embeddings: Mapping[str, LowRank]


@dataclass(frozen=True)
class AdaptedRows:
    """The rows of the flattened tokens [N] that one adapter is for: a slice, or ids [n] without repeats."""

    rows: slice | Tensor
    updates: Updates

    def add_linear(self, name: str, x: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
        """Add to `out` [..., out], in place, what the adapter makes of x [..., in] in the layer `name`.

        bias: the one that is already in `out`.
        """
        update = self.updates.linears.get(name)
        if update is not None:
            added = update.apply(x.reshape(-1, x.shape[-1])[self.rows])
            if update.gain is not None:
                added = update.amplify(added, out.view(-1, out.shape[-1])[self.rows], bias)
            self._add(out, added)

    def add_embedding(self, name: str, ids: Tensor, out: Tensor) -> None:
        """Add to the embeddings `out` [..., D] of token ids [...], in place."""
        update = self.updates.embeddings.get(name)
        if update is not None:
            self._add(out, update.look_up(ids.flatten()[self.rows]))

    def _add(self, out: Tensor, added: Tensor) -> None:
        flat = out.view(-1, out.shape[-1])
        if isinstance(self.rows, slice):
            flat[self.rows].add_(added)
        else:
            flat.index_add_(0, self.rows, added)
