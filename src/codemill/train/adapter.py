"""An adapter that is trained. Shapes: E experts, r rank, D model, V vocabulary."""

from pathlib import Path

import torch
from torch import nn

from codemill.kernels.low_rank import ExpertUpdates, LowRank, Updates
from codemill.models.decoder import CausalLM
from codemill.models.lora import LoraAdapter
from codemill.models.lora_config import LoraConfig
from codemill.models.lora_save import SavedSettings, SavedUpdate, save_adapter
from codemill.train.adapter_targets import HEAD, Target, find_targets, peft_names
from codemill.train.lora_config import LoraSection
from codemill.train.policy import TrainableAdapter


class LowRankWeights(nn.Module):
    """The update of one weight, or of a layer's stacked experts: fp32 a [(E,) r, in] and b [(E,) out, r]."""

    def __init__(self, target: Target, rank: int, alpha: float, scale: float) -> None:
        super().__init__()
        self.target, self.rank, self.alpha, self.scale = target, rank, alpha, scale
        *experts, out_features, in_features = target.shape
        self.a = nn.Parameter(torch.empty(*experts, rank, in_features))
        self.b = nn.Parameter(torch.zeros(*experts, out_features, rank))

    def initialize(self, generator: torch.Generator) -> None:
        """As PEFT does: the product of a and b is zero, and so is what the adapter changes at first."""
        if self.target.is_embedding:
            nn.init.zeros_(self.a)
            nn.init.normal_(self.b, generator=generator)
        else:
            bound = self.a.shape[-1] ** -0.5  # Kaiming's, with a = sqrt(5)
            nn.init.uniform_(self.a, -bound, bound, generator=generator)

    def low_rank(self, dtype: torch.dtype, dropout: float) -> LowRank:
        """The update of a weight, as the forward pass takes it."""
        return LowRank(self.a.to(dtype), self.b.to(dtype), self.scale, dropout)

    def for_each_expert(self, dtype: torch.dtype, dropout: float) -> list[LowRank]:
        """The updates of stacked experts."""
        # Unbound, not indexed: the gradient of an index is as large as all experts together, once for each of them.
        pairs = zip(self.a.to(dtype).unbind(), self.b.to(dtype).unbind(), strict=True)
        return [LowRank(a, b, self.scale, dropout) for a, b in pairs]

    def saved(self) -> SavedUpdate:
        target = self.target
        return SavedUpdate(
            *(target.module, self.a.detach(), self.b.detach(), self.alpha, target.parameter, target.is_embedding)
        )


class TrainableLora(TrainableAdapter):
    """Low-rank updates of the weights of a frozen `model` that `section` asks for; what `seed` determines begins them.

    Its tensors are fp32, and the forward pass takes them in the model's dtype: as a server does that loads the adapter,
    so that both compute the same. Dropout is applied only where gradients are wanted.
    """

    def __init__(self, model: CausalLM, section: LoraSection, seed: int = 0) -> None:
        super().__init__()
        self._dtype, self._dropout = model.dtype, section.dropout
        self._config = LoraConfig(
            Path("[lora]"), section.rank, section.alpha, section.rslora, section.rank_pattern, section.alpha_pattern
        )
        targets = find_targets(model, section.targets)
        self._peft_names = peft_names(targets, model)
        self.weights = nn.ModuleDict({_key(target): self._make(target) for target in targets})
        generator = torch.Generator().manual_seed(seed)
        for each in self.each:
            each.initialize(generator)
        self.to(model.device)

    def _make(self, target: Target) -> LowRankWeights:
        name = target.name
        return LowRankWeights(target, self._config.rank(name), self._config.alpha(name), self._config.scale(name))

    @property
    def each(self) -> list[LowRankWeights]:
        return [module for module in self.weights.values() if isinstance(module, LowRankWeights)]

    @property
    def lora(self) -> LoraAdapter:
        dtype, dropout = self._dtype, self._dropout if torch.is_grad_enabled() else 0.0
        linears, embeddings = dict[str, LowRank](), dict[str, LowRank]()
        experts = dict[str, dict[str, list[LowRank]]]()
        for each in self.each:
            target = each.target
            if target.parameter:
                experts.setdefault(target.module, {})[target.parameter] = each.for_each_expert(dtype, dropout)
            else:
                updates = embeddings if target.is_embedding else linears
                updates[target.module] = each.low_rank(dtype, dropout)
        stacked = {name: ExpertUpdates(by["gate_up_proj"], by["down_proj"]) for name, by in experts.items()}
        return LoraAdapter("trained", Updates(linears, stacked, embeddings), b"")

    @property
    def has_head(self) -> bool:
        return any(each.target.module == HEAD for each in self.each)

    def save(self, directory: Path, base: str) -> None:
        config = self._config
        settings = SavedSettings(base, *self._peft_names, config.r, config.lora_alpha, config.use_rslora, self._dropout)
        save_adapter(directory, [each.saved() for each in self.each], settings)


def _key(target: Target) -> str:
    return target.name.replace(".", "/")  # no name of a module may have a dot
