"""The weights of a model with an adapter merged into them, one tensor at a time. Shapes: r rank, F ffn."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from codemill.kernels.low_rank import LowRank
from codemill.models.lora import LoraAdapter
from codemill.models.weight_stream import WeightStream

_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<index>\d+)\.(?P<kind>gate|up|down)_proj\.weight")
_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"


class MergedStream(WeightStream):
    """The weights of `base` plus what the adapter in `directory` adds to them, computed in fp32.

    A tied model whose embedding or head is adapted becomes one that is not tied: these two are then different.
    """

    def __init__(self, base: WeightStream, directory: Path) -> None:
        """Raises CodemillError naming what is wrong with the adapter, as `LoraAdapter.load` does."""
        self._base = base
        self._updates = LoraAdapter.load(directory, base.config, torch.float32, weights=self._base_weight).updates
        changes_tied = _HEAD in self._updates.linears or bool(self._updates.embeddings)
        self._unties = base.config.tie_word_embeddings and changes_tied
        super().__init__(replace(base.config, tie_word_embeddings=False) if self._unties else base.config)

    def names(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from self._base.names()
        if self._unties:
            yield f"{_HEAD}.weight", (self.config.vocab_size, self.config.hidden_size)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        stored = f"{_EMBEDDING}.weight" if self._unties and name == f"{_HEAD}.weight" else name
        weight = self._base.read(stored, shape)
        update = self._update(name)
        return weight if update is None else _merged(weight, update)

    def _update(self, name: str) -> LowRank | None:
        """What is added to the tensor `name`."""
        updates, module = self._updates, name.removesuffix(".weight")
        match = _EXPERT.fullmatch(name)
        if match is not None:
            experts = updates.experts.get(match["experts"])
            if experts is None:
                return None
            both = (experts.down if match["kind"] == "down" else experts.gate_up)[int(match["index"])]
            return both if both is None or match["kind"] == "down" else _half(both, match["kind"] == "up")
        if module in updates.embeddings:
            return _transposed(updates.embeddings[module])
        return updates.linears.get(module)

    def _base_weight(self, module: str) -> Tensor:
        """The weight of a linear layer without the adapter."""
        is_tied_head = module == _HEAD and self._base.config.tie_word_embeddings
        name = f"{_EMBEDDING if is_tied_head else module}.weight"
        return self._base.read(name, tuple(self._base.model.get_parameter(name).shape))


def _merged(weight: Tensor, update: LowRank) -> Tensor:
    merged = torch.addmm(weight, update.b, update.a, alpha=update.scale)
    return merged if update.gain is None else merged.mul_(update.gain[:, None])


def _half(update: LowRank, is_up: bool) -> LowRank:
    """Of gate and up, b [2F, r], the update of one."""
    return replace(update, b=update.b.chunk(2)[is_up])


def _transposed(update: LowRank) -> LowRank:
    """An embedding's weight is [vocab, D], its update the other way round."""
    return LowRank(update.b.T, update.a.T, update.scale)
