"""The section `[parallel]` of training configurations."""

import os
from dataclasses import dataclass

from codemill.config import ModelConfig
from codemill.errors import UsageError


@dataclass(frozen=True)
class ParallelConfig:
    """How the processes that `torchrun` starts share the work; see docs/distributed.md.

    Of data * tensor * expert processes, each group of `tensor` computes one micro-batch together, every matrix of
    attention and MLPs in so many parts. Each group of `expert` has every layer's experts in so many parts, and each of
    its processes rows of its own. `data`: how many such groups there are; 0 for as many as there are processes for.
    shard: every process keeps only its share of weights, gradients and optimiser (FSDP).
    """

    data: int = 0
    tensor: int = 1
    expert: int = 1
    shard: bool = False

    def __post_init__(self) -> None:
        for name in ("tensor", "expert"):
            if getattr(self, name) < 1:
                raise UsageError(f"parallel.{name} = {getattr(self, name)} must be at least 1")
        if self.tensor > 1 and self.expert > 1:
            raise UsageError("parallel.tensor and parallel.expert cannot both be above 1")

    @property
    def num_processes(self) -> int:
        """As many as torchrun has started; without it, as many as are asked for, one group where `data` is 0."""
        started = os.environ.get("WORLD_SIZE")
        return (self.data or 1) * self.tensor * self.expert if started is None else int(started)

    def check_rows(self, rows_per_step: int, rows_per_micro_batch: int, num_processes: int) -> None:
        """Raises UsageError if not all processes get equally many micro-batches of a step."""
        readers = self.groups(num_processes) * self.expert
        if rows_per_step % (rows_per_micro_batch * readers):
            raise UsageError(
                f"loop.rows_per_step = {rows_per_step} must be a multiple of loop.rows_per_micro_batch = "
                f"{rows_per_micro_batch} times the {readers} processes that read rows of their own"
            )

    @property
    def leaves_whole(self) -> bool:
        """Whether each process has all of the model."""
        return not self.shard and self.tensor * self.expert == 1

    def groups(self, num_processes: int) -> int:
        """`data` for so many processes. Raises UsageError where they do not fit."""
        size = self.tensor * self.expert
        data = self.data or num_processes // size
        if data * size != num_processes:
            needed = f"{data or 1} x {size} = {(data or 1) * size}"
            raise UsageError(
                f"[parallel] asks for {needed} processes, not {num_processes}: start the run with "
                f"torchrun --nproc-per-node {(data or 1) * size} -m codemill train ..."
            )
        return data

    def check(self, config: ModelConfig, has_adapter: bool = False, is_quantized: bool = False) -> None:
        """Raises UsageError for a model that cannot be cut in so many parts."""
        if has_adapter and self.tensor * self.expert > 1:
            raise UsageError("adapters are trained with parallel.data and shard; set parallel.tensor and expert to 1")
        if is_quantized and self.shard:
            raise UsageError("a quantised model cannot be in shards: set parallel.shard = false")
        if self.expert > 1:
            if config.moe is None:
                raise UsageError("parallel.expert is for models with experts: this one has none")
            _check_divides("parallel.expert", self.expert, {"num_experts": config.moe.num_experts})
        if self.tensor > 1:
            sizes = {
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": config.num_key_value_heads,
            }
            if config.moe is None or not all(map(config.is_moe_layer, range(config.num_hidden_layers))):
                sizes["intermediate_size"] = config.intermediate_size
            if config.moe is not None and config.moe.shared_expert_intermediate_size:
                sizes["shared_expert_intermediate_size"] = config.moe.shared_expert_intermediate_size
            if config.moe is not None:
                sizes["num_experts"] = config.moe.num_experts
            _check_divides("parallel.tensor", self.tensor, sizes)


def _check_divides(key: str, parts: int, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if size % parts:
            raise UsageError(f"{key} = {parts} does not divide the model's {name} = {size}")
