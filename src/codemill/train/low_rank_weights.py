"""The trained parameters of one low-rank update. Shapes: E experts, r rank."""

from functools import partial

import torch
from torch import Tensor, nn

from codemill.kernels.low_rank import LowRank
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.models.decoder import CausalLM
from codemill.models.dora import gains, row_norms, weight_of
from codemill.models.lora_save import SavedUpdate
from codemill.train.adapter_targets import Target


class LowRankWeights(nn.Module):
    """The update of one weight, or of a layer's stacked experts: fp32 a [(E,) r, in] and b [(E,) out, r].

    With DoRA also the magnitudes [out], the lengths of the rows of the changed weight.
    """

    def __init__(self, target: Target, rank: int, alpha: float, scale: float) -> None:
        super().__init__()
        self.target, self.rank, self.alpha, self.scale = target, rank, alpha, scale
        *experts, out_features, in_features = target.shape
        self.a = nn.Parameter(torch.empty(*experts, rank, in_features))
        self.b = nn.Parameter(torch.zeros(*experts, out_features, rank))
        self.register_parameter("magnitude", None)

    def initialize(self, generator: torch.Generator) -> None:
        """As PEFT does: the product of a and b is zero, and so is what the adapter changes at first."""
        if self.target.is_embedding:
            nn.init.zeros_(self.a)
            nn.init.normal_(self.b, generator=generator)
        else:
            bound = self.a.shape[-1] ** -0.5  # Kaiming's, with a = sqrt(5)
            nn.init.uniform_(self.a, -bound, bound, generator=generator)

    def train_magnitude(self, model: CausalLM) -> None:
        """Make this DoRA: train the lengths of the rows as well, from those that they have now."""
        self._weight_of = partial(weight_of, model, self.target.module)
        norms = torch.empty_like(self.b[:, 0]) if self.b.is_meta else self._norms()
        self.magnitude = nn.Parameter(norms)

    def _norms(self) -> Tensor:
        weight: Tensor | PackedMatrix = self._weight_of()
        return row_norms(weight, self.a, self.b, self.scale)

    def low_rank(self, dtype: torch.dtype, dropout: float) -> LowRank:
        """The update of a weight, as the forward pass takes it."""
        gain = None if self.magnitude is None else gains(self.magnitude, self._norms())
        return LowRank(self.a.to(dtype), self.b.to(dtype), self.scale, dropout, gain)

    def for_each_expert(self, dtype: torch.dtype, dropout: float) -> list[LowRank]:
        """The updates of stacked experts."""
        # Unbound, not indexed: the gradient of an index is as large as all experts together, once for each of them.
        pairs = zip(self.a.to(dtype).unbind(), self.b.to(dtype).unbind(), strict=True)
        return [LowRank(a, b, self.scale, dropout) for a, b in pairs]

    def saved(self) -> SavedUpdate:
        """As it goes to disk; the tensors are those of the parameters."""
        target, magnitude = self.target, self.magnitude
        return SavedUpdate(
            *(target.module, self.a.detach(), self.b.detach(), self.alpha, target.parameter, target.is_embedding),
            magnitude=None if magnitude is None else magnitude.detach(),
        )
