"""How much memory a step takes on each of several processes, before anything is loaded."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from codemill.config import ModelConfig
from codemill.footprint import available_memory
from codemill.models.skeleton import build
from codemill.train.parallel_config import ParallelConfig

# What `parallel_model.py` cuts under `tensor`.
_MATRICES = re.compile(r"\.self_attn\.[qkvo]_proj\.|\.mlp\.(shared_expert\.)?(gate|up|down)_proj\.")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Split:
    """A model's parameters over processes, as counts.

    kept: those that each keeps between passes, of `whole`. layer, rest: of the largest layer and of embedding, head and
    final norm, what FSDP puts together on a process for a pass; 0 without it.
    """

    whole: int
    kept: int
    layer: int = 0
    rest: int = 0

    @property
    def share(self) -> float:
        return self.kept / self.whole


def split_of(config: ModelConfig, parallel: ParallelConfig, num_processes: int) -> Split:
    """How so many processes hold the model of `config`."""
    groups = parallel.groups(num_processes)
    whole, kept, together = 0, 0.0, dict[str, float]()  # by layer, "" for the rest
    for name, parameter in build(config, torch.float32).named_parameters():
        is_expert = ".experts." in name
        in_parts = parallel.tensor if is_expert or _MATRICES.search(name) else 1
        size = parameter.numel() / in_parts / (parallel.expert if is_expert else 1)
        shards = (groups if is_expert else groups * parallel.expert) if parallel.shard else 1
        layer = found[1] if (found := _LAYER.search(name)) else ""
        together[layer] = together.get(layer, 0.0) + (size if shards > 1 else 0.0)
        whole, kept = whole + parameter.numel(), kept + size / shards
    rest = together.pop("")
    return Split(whole, int(kept), int(max(together.values())), int(rest))


def process_memory(
    whole: Mapping[str, int], weight_bytes: int, split: Split, has_adapter: bool, is_bf16: bool
) -> dict[str, int]:
    """Bytes by purpose on each process. whole: those of `step_memory`, for one process alone.

    Activations are counted as if they were whole; under `tensor` those of attention and MLPs are in parts.
    """
    in_parts = ("weights",) if has_adapter else ("weights", "gradients", "optimizer")
    memory = {name: int(size * split.share) if name in in_parts else size for name, size in whole.items()}
    if split.layer + split.rest:
        memory["weights"] = int(weight_bytes * split.share)  # casts are those that are put together
        of_layer = 2 if is_bf16 else 4
        # Two layers, as the next one is fetched meanwhile, and the gradients of one.
        together = 2 * of_layer * split.layer + 4 * split.rest
        gradients = 0 if has_adapter else of_layer * split.layer + 4 * split.rest
        memory["gathered"] = together + gradients
    return memory


def free_memory() -> tuple[int, str]:
    """Bytes that this process can train in, and whose they are: its GPU's, or its part of the machine's."""
    if torch.cuda.is_available():
        device = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        return torch.cuda.mem_get_info(device)[0], "the GPU"
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if beside == 1:
        return available_memory(), "this machine"
    return available_memory() // beside, f"each of {beside} processes on this machine"
