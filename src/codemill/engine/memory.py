"""How much the engine may remember: blocks and state slots, counted from bytes before anything is allocated."""

from dataclasses import dataclass

import torch

from codemill.config import ModelConfig
from codemill.engine.cache_manager import CacheShape
from codemill.engine_config import EngineConfig
from codemill.errors import UsageError
from codemill.footprint import available_memory
from codemill.kernels.kv_cache import kv_vector_bytes

# Of the memory that is free once the weights are there; the rest is for activations and for others on the machine.
CPU_SHARE, GPU_SHARE = 0.4, 0.85
STATE_SHARE = 0.5  # at most so much of the budget goes into state slots


@dataclass(frozen=True)
class CachePlan:
    """What to allocate: the shape of the cache, and how long a sequence may be."""

    shape: CacheShape
    max_model_len: int


def resolve_kv_dtype(engine: EngineConfig, dtype: torch.dtype) -> torch.dtype:
    """Of the keys and values of a model of `dtype`."""
    return dtype if engine.kv_cache_dtype == "auto" else getattr(torch, engine.kv_cache_dtype)


def kv_bytes_per_token(config: ModelConfig, kv_dtype: torch.dtype) -> int:
    """Bytes of KV cache that one token takes, all layers together; of int8 with its scales."""
    num_layers = config.layer_types.count("full_attention")
    return 2 * num_layers * config.num_key_value_heads * kv_vector_bytes(config.head_dim, kv_dtype)


def state_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one state slot, all layers together; 0 for a model without linear attention."""
    linear = config.linear_attention
    if linear is None:
        return 0
    recurrent = linear.num_value_heads * linear.key_head_dim * linear.value_head_dim * torch.float32.itemsize
    conv = (linear.conv_kernel_dim - 1) * linear.conv_channels * dtype.itemsize
    return config.layer_types.count("linear_attention") * (recurrent + conv)


def plan_cache(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    engine: EngineConfig,
    longest: int,
    *,
    must_fit: bool,
    draft_bytes_per_token: int = 0,
) -> CachePlan:
    """Blocks and slots within the budget, for contexts of at most `longest` tokens.

    If the budget holds less than `longest` tokens, sequences may be as long as it holds; with `must_fit` that is a
    UsageError instead, as it is if not even one block fits.
    """
    per_token = kv_bytes_per_token(config, resolve_kv_dtype(engine, dtype)) + draft_bytes_per_token
    per_block = per_token * engine.block_size
    per_state = state_bytes(config, dtype)
    wanted_blocks = engine.max_num_seqs * (-(-longest // engine.block_size))
    wanted_states = _wanted_states(engine) if per_state else 0
    budget = engine.kv_cache_bytes or int(_free_bytes(device))
    num_states = min(wanted_states, max(1, int(budget * STATE_SHARE) // per_state)) if per_state else 0
    num_blocks = min(wanted_blocks, (budget - num_states * per_state) // per_block)
    if num_blocks < 1 or (per_state and num_states < 1):
        least = per_block + per_state
        raise UsageError(f"a cache of {budget} bytes holds no sequence: give at least {least} kv_cache_bytes")
    max_model_len = min(longest, num_blocks * engine.block_size)
    if must_fit and max_model_len < longest:
        raise UsageError(
            f"max_model_len = {longest}: the KV cache holds {max_model_len} tokens; give at most that, or at least "
            f"{num_states * per_state + -(-longest // engine.block_size) * per_block} kv_cache_bytes"
        )
    max_num_seqs = engine.max_num_seqs
    if num_states < wanted_states:  # sequences that run need a slot each; at most half are for checkpoints
        max_num_seqs = min(max_num_seqs, num_states - min(num_states // 2, wanted_states - max_num_seqs))
    shape = CacheShape(
        num_blocks, engine.block_size, max_num_seqs, num_states, engine.state_interval, engine.enable_prefix_cache
    )
    return CachePlan(shape, max_model_len)


def _wanted_states(engine: EngineConfig) -> int:
    checkpoints = engine.max_state_checkpoints
    if not engine.enable_prefix_cache:
        checkpoints = 0
    return engine.max_num_seqs + (engine.max_num_seqs if checkpoints is None else checkpoints)


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] * GPU_SHARE
    return available_memory() * CPU_SHARE
