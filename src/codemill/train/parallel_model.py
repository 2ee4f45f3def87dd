"""Cuts a policy into what each process keeps of it: tensor and expert parallel, and shards (FSDP2).

Weights in parts are DTensors; they keep their names, and checkpoints put them together again.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from codemill.models import CausalLM
from codemill.models.decoder import DecoderLayer
from codemill.models.layers import Mlp
from codemill.models.moe import SparseMoe
from codemill.train.parallel_config import ParallelConfig
from codemill.train.parallel_experts import AddingExperts, ExchangingExperts, ParallelExperts, ParallelMoe
from codemill.train.policy import Policy

_AS_IT_IS = MixedPrecisionPolicy()


def split_policy(policy: Policy, config: ParallelConfig, mesh: DeviceMesh, rows: DeviceMesh, precision: str) -> None:
    """In place. mesh: [data, tensor] or [data, expert]; rows: of it, the processes that read rows of their own.

    precision: of matrix products, "float32" or "bfloat16". An adapter is small, and stays whole. Raises UsageError for
    what cannot be split.
    """
    model = policy.model
    config.check(model.config, policy.adapter is not None, model.config.quantization is not None)
    if config.tensor > 1:
        _split_matrices(model, mesh["tensor"])
        _split_experts(model, AddingExperts, mesh["tensor"])
    if config.expert > 1:
        _split_experts(model, ExchangingExperts, mesh["expert"])
    if config.shard:  # which moves layer by layer to the device: the whole model may be too large
        _shard(model, mesh["data"], rows, precision)
    moved = policy.adapter if config.shard else policy
    if moved is not None and mesh.device_type != "cpu":
        moved.to(mesh.device_type)


def _split_experts(model: CausalLM, kind: type[ParallelExperts], mesh: DeviceMesh) -> None:
    for layer in model.model.layers:
        assert isinstance(layer, DecoderLayer)
        if isinstance(layer.mlp, SparseMoe):
            layer.mlp = ParallelMoe(layer.mlp, kind(layer.mlp.experts, mesh))


def _split_matrices(model: CausalLM, mesh: DeviceMesh) -> None:
    """Attention by heads and MLPs by features (Shoeybi et al. 2019, arXiv:1909.08053).

    Gated DeltaNet stays whole, and is computed on every process of the group.
    """
    for layer in model.model.layers:
        assert isinstance(layer, DecoderLayer)
        _split_layer(layer, mesh)


def _split_layer(layer: DecoderLayer, mesh: DeviceMesh) -> None:
    if layer.layer_type == "full_attention":
        _parallelize(layer.self_attn, mesh, num_inputs=3, columns=("q_proj", "k_proj", "v_proj"), rows="o_proj")
        heads = {"q_norm": SequenceParallel(sequence_dim=2, use_local_output=True)}
        parallelize_module(layer.self_attn, mesh, {**heads, "k_norm": heads["q_norm"]})
    mlps = [layer.mlp] if isinstance(layer.mlp, Mlp) else [getattr(layer.mlp, "shared_expert", None)]
    for mlp in mlps:
        if mlp is not None:
            _parallelize(mlp, mesh, num_inputs=2, columns=("gate_proj", "up_proj"), rows="down_proj")


def _parallelize(module: nn.Module, mesh: DeviceMesh, num_inputs: int, columns: tuple[str, ...], rows: str) -> None:
    """The first of so many inputs is the same on all processes, and so is the output."""
    layouts: tuple[Any, ...] = (Replicate(), *[None] * (num_inputs - 1))
    # Once for all columns: its gradient, which has a part on each process, is so added up once.
    parallelize_module(module, mesh, PrepareModuleInput(input_layouts=layouts, desired_input_layouts=layouts))
    parallelize_module(module, mesh, {**{name: ColwiseParallel() for name in columns}, rows: RowwiseParallel()})


def _shard(model: CausalLM, data: DeviceMesh, rows: DeviceMesh, precision: str) -> None:
    """Each layer's weights are put together when it is their turn (Zhao et al. 2023, arXiv:2304.11277).

    Where matrix products are in bf16, so are the matrices of layers that are put together for them. Embedding, head and
    what is no matrix are computed with in fp32.
    """
    apart = set[nn.Parameter]()  # experts that one process alone has, and what is no matrix
    # Gradients are summed in fp32; inputs are left to autocast.
    is_bf16 = precision == "bfloat16"
    of_layers = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if is_bf16 else _AS_IT_IS
    for layer in model.model.layers:
        assert isinstance(layer, DecoderLayer)
        if isinstance(layer.mlp, ParallelMoe):
            if data.size() > 1:
                fully_shard(layer.mlp.experts, mesh=data, mp_policy=of_layers)
            else:
                apart.update(layer.mlp.experts.parameters())
        if is_bf16:
            apart.update(_on_device(each, rows.device_type) for each in layer.parameters() if _is_fp32_vector(each))
        fully_shard(layer, mesh=rows, ignored_params=apart, mp_policy=of_layers)
    fully_shard(model, mesh=rows, ignored_params=apart)
    register_fsdp_forward_method(model, "hidden_states")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the counts of all processes: gradients are sums.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def reshard(policy: Policy) -> None:
    """Give up weights that a pass without gradients has put together."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _is_fp32_vector(parameter: nn.Parameter) -> bool:
    """A norm, a bias, the taps of a convolution, or another one that matrix products do not read: few numbers."""
    return parameter.dtype == torch.float32 and (parameter.dim() < 2 or min(parameter.shape[-2:]) == 1)


def _on_device(parameter: nn.Parameter, device_type: str) -> nn.Parameter:
    parameter.data = parameter.data.to(device_type)
    return parameter
