"""The structs of `cpu/decoder.h` and `cpu/matrix.h` as ctypes knows them, field by field, and how weights become them.

A struct holds addresses, not memory: whoever makes one keeps the tensors alive.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from codemill.kernels.packed_matrix import PackedMatrix

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32
PLAIN_KINDS = {torch.float32: 0, torch.bfloat16: 1}
CACHE_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class MatrixStruct(ctypes.Structure):
    """A weight [N, K], or the first of a stack of them; all zeros for one that is not there."""

    _fields_ = (
        ("weight", _POINTER),
        ("scale", _POINTER),
        ("minimum", _POINTER),
        ("num_rows", _INT),
        ("num_columns", _INT),
        ("kind", _INT),
        ("group_size", _INT),
    )

    @classmethod
    def of(cls, weight: Tensor | PackedMatrix) -> "MatrixStruct":
        """The struct of a weight [..., N, K] for which `takes` is true."""
        if isinstance(weight, PackedMatrix):
            tensors = (weight.weight, weight.scale, weight.minimum)
            return cls(*map(address, tensors), weight.num_rows, weight.num_columns, weight.bits, weight.group_size)
        return cls(weight.data_ptr(), None, None, *weight.shape[-2:], PLAIN_KINDS[weight.dtype], 0)

    @staticmethod
    def takes(weight: Tensor | PackedMatrix) -> bool:
        """Whether the kernels compute with such a weight."""
        if isinstance(weight, PackedMatrix):
            scales = [weight.scale] if weight.minimum is None else [weight.scale, weight.minimum]
            tensors = [(weight.weight, torch.uint8), *((scale, torch.float16) for scale in scales)]
            return all(x.device.type == "cpu" and x.dtype == dtype and x.is_contiguous() for x, dtype in tensors)
        return weight.device.type == "cpu" and weight.dtype in PLAIN_KINDS and weight.is_contiguous()


def _matrices(*names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, MatrixStruct) for name in names)


def _pointers(*names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, _POINTER) for name in names)


def _ints(*names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, _INT) for name in names)


class LayerStruct(ctypes.Structure):
    """The weights of a decoder layer; what it lacks is zero."""

    _fields_ = (
        *_pointers("input_norm", "post_norm"),
        *_matrices("q_proj", "k_proj", "v_proj", "o_proj"),
        *_pointers("q_norm", "k_norm"),
        *_matrices("in_proj_qkvz", "in_proj_ba", "out_proj"),
        *_pointers("conv_weight", "A_log", "dt_bias", "delta_norm"),
        *_matrices("gate_proj", "up_proj", "down_proj", "shared_gate"),
        *_matrices("router", "expert_gate_up", "expert_down"),
    )


class DecoderStruct(ctypes.Structure):
    """The decoder: its shape and its weights."""

    _fields_ = (
        *_matrices("embedding"),
        *_pointers("layers", "norm"),
        *_ints("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "rotary_dim", "is_gated"),
        *_ints("num_experts", "top_k", "normalise_top_k", "experts_on_disk"),
        *_ints("num_key_heads", "num_value_heads", "key_dim", "value_dim", "conv_width"),
        ("eps", ctypes.c_float),
    )


class LayerStateStruct(ctypes.Structure):
    """What a layer remembers, and where the inputs of its recurrence are to be kept, if at all."""

    _fields_ = _pointers("key", "value", "key_scale", "value_scale", "recurrent", "windows", "qkvz", "ba")


class PassStruct(ctypes.Structure):
    """The tokens of a pass, where they belong, and where the result goes."""

    _fields_ = (
        *_pointers("input_ids", "cos", "sin", "slots", "pieces", "block_tables"),
        *_pointers("delta_segments", "delta_copies", "states", "hidden"),
        *_ints("num_rows", "num_pieces", "max_blocks", "block_size", "num_delta_segments"),
        *_ints("cache_dtype", "windows_are_bf16", "may_use_tiles"),
    )


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers begin."""
    return None if tensor is None else tensor.data_ptr()
