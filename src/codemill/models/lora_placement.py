"""Finds the places of an adapter's tensors in the network. Shapes: E experts, r rank, D model, F ffn."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from codemill.config import ModelConfig
from codemill.errors import CodemillError
from codemill.kernels.linear import Linear
from codemill.kernels.low_rank import LowRank, Updates
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.models.dora import gains, row_norms
from codemill.models.lora_config import LoraConfig
from codemill.models.lora_experts import LayerExperts, expert_place
from codemill.models.lora_file import StoredUpdate
from codemill.models.moe import Experts
from codemill.models.skeleton import build

_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"


class Placement:
    """Takes updates one by one, to the places that a network of this configuration has for them."""

    def __init__(
        self,
        settings: LoraConfig,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        weights: Callable[[str], Tensor | PackedMatrix] | None = None,
    ) -> None:
        """weights: as for `LoraAdapter.load`."""
        self._weights = weights
        modules = dict(build(config, dtype).named_modules())
        self._settings = settings
        self._dtype, self._device = dtype, device
        self._linear_shapes = {
            name: (each.out_features, each.in_features) for name, each in modules.items() if isinstance(each, Linear)
        }
        self._linear_shapes[_HEAD] = config.vocab_size, config.hidden_size  # a tied head is no module
        self._embedding_shape = config.hidden_size, config.vocab_size
        self._experts = {
            name: LayerExperts(name, *each.down_proj.shape)
            for name, each in modules.items()
            if isinstance(each, Experts)
        }
        self._linears: dict[str, LowRank] = {}
        self._embeddings: dict[str, LowRank] = {}

    def add(self, stored: StoredUpdate) -> None:
        """Raises CodemillError if the network has no place for it."""
        module = stored.module
        if stored.magnitude is not None and module not in self._linear_shapes:
            raise CodemillError(f"{stored.magnitude.path}: DoRA of {module} is not supported: only of linear layers")
        if stored.is_embedding and module == _EMBEDDING:
            self._embeddings[module] = self._read(stored, self._embedding_shape)
        elif not stored.is_embedding and module in self._linear_shapes:
            update = self._read(stored, self._linear_shapes[module])
            self._linears[module] = replace(update, gain=self._gain(stored, update.scale))
        elif not stored.is_embedding and (experts := self._experts.get(expert_place(module))) is not None:
            experts.add(stored, self._settings)
        else:
            raise CodemillError(
                f"{stored.a.path}: tensor {stored.a.name} is for {module}, which this model does not have, or which "
                "cannot be adapted: is the adapter for another model?"
            )

    def updates(self) -> Updates:
        """All that was added, in memory."""
        experts = {name: each.updates(self._to_memory) for name, each in self._experts.items() if each.has_any}
        return Updates(self._linears, experts, self._embeddings)

    def _read(self, stored: StoredUpdate, shape: tuple[int, int]) -> LowRank:
        a, b = stored.read(*shape, self._settings.rank(stored.module))
        return LowRank(self._to_memory(a), self._to_memory(b), self._settings.scale(stored.module))

    def _gain(self, stored: StoredUpdate, scale: float) -> Tensor | None:
        """From the tensors as they are on disk, before they are rounded to the model's dtype."""
        magnitude = stored.read_magnitude()
        if magnitude is None:
            if self._settings.use_dora:
                raise CodemillError(f"{stored.a.path}: {stored.module} has no lora_magnitude_vector, which DoRA needs")
            return None
        if self._weights is None:
            raise CodemillError(f"{stored.a.path}: a DoRA adapter is read together with the weights that it is for")
        a, b = (stored.files.view(each).to(self._device) for each in (stored.a, stored.b))
        norms = row_norms(self._weights(stored.module), a, b, scale)
        return gains(magnitude.to(self._device, torch.float32), norms)

    def _to_memory(self, tensor: Tensor) -> Tensor:
        # A copy in any case: the file may change or go.
        return tensor.to(self._device, self._dtype, copy=True, memory_format=torch.contiguous_format)
