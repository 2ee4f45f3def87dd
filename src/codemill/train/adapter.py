"""An adapter that is trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from codemill.kernels.low_rank import ExpertUpdates, LowRank, Updates
from codemill.models.decoder import CausalLM
from codemill.models.lora import LoraAdapter
from codemill.models.lora_config import LoraConfig
from codemill.models.lora_save import SavedSettings, save_adapter
from codemill.train.adapter_start import new_weights, stored_weights
from codemill.train.adapter_targets import HEAD, Target, peft_names
from codemill.train.lora_config import LoraSection
from codemill.train.low_rank_weights import LowRankWeights
from codemill.train.policy import TrainableAdapter


class TrainableLora(TrainableAdapter):
    """Low-rank updates of the weights of a frozen `model` that `section` asks for; what `seed` determines begins them.

    Its tensors are fp32, and the forward pass takes them in the model's dtype: as a server does that loads the adapter,
    so that both compute the same. Dropout is applied only where gradients are wanted.
    """

    def __init__(self, model: CausalLM, section: LoraSection, seed: int = 0) -> None:
        super().__init__()
        self._dtype, self._dropout, self._per_expert = model.dtype, section.dropout, section.per_expert
        if section.init_from:
            self._config = LoraConfig.load(Path(section.init_from))
            weights = stored_weights(model, Path(section.init_from), self._config)
        else:
            self._config = _config(section)
            weights = new_weights(model, section, self._config, seed)
        self._peft_names = peft_names([each.target for each in weights], model)
        self.weights = nn.ModuleDict({_key(each.target): each for each in weights})

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
        stacked = {name: _expert_updates(by) for name, by in experts.items()}
        return LoraAdapter("trained", Updates(linears, stacked, embeddings), b"")

    @property
    def has_head(self) -> bool:
        return any(each.target.module == HEAD for each in self.each)

    def save(self, directory: Path, base: str) -> None:
        config = self._config
        settings = SavedSettings(
            *(base, *self._peft_names, config.r, config.lora_alpha, config.use_rslora),
            dropout=self._dropout,
            per_expert=self._per_expert,
        )
        save_adapter(directory, [each.saved() for each in self.each], settings)


def _config(section: LoraSection) -> LoraConfig:
    return LoraConfig(
        *(Path("[lora]"), section.rank, section.alpha, section.rslora, section.rank_pattern, section.alpha_pattern)
    )


def _expert_updates(by_parameter: Mapping[str, Sequence[LowRank]]) -> ExpertUpdates:
    none = [None] * max(map(len, by_parameter.values()))
    return ExpertUpdates(by_parameter.get("gate_up_proj", none), by_parameter.get("down_proj", none))


def _key(target: Target) -> str:
    return target.name.replace(".", "/")  # no name of a module may have a dot
