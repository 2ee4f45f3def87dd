"""The gated delta rule (Yang et al. 2024, arXiv:2412.06464): token by token, and in chunks.

Shapes: B batch, H value heads, T tokens, K key dim, V value dim, N chunks, c tokens in a chunk. Everything is fp32.
`g` is the log decay (<= 0) and `beta` the write strength, both [B, H, T]. A token with g = beta = 0 changes nothing,
which is how padding is expressed.

On the CPU a C++ kernel does the segments of a cache, see `cpu/gated_delta.h`: all that lies between the projections of
Gated DeltaNet, token by token, with the part of the state that it works on in the first-level cache. Its result for a
token is the same to the last bit however the sequence is cut, whatever else is in the call, and on any number of
threads. Chunks would take fewer operations, but round by where they begin.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.segments import Segments

CHUNK_SIZE = 64
# What the C++ kernel takes.
_KERNEL_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_LANES = 16  # of the widest variant; the tests try the others


def gated_delta_recurrent(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition: S <- exp(g) S; S <- S + k (beta (v - S^T k))^T; o = S^T q.

    query, key [B, H, T, K], value [B, H, T, V], state [B, H, K, V] -> outputs [B, H, T, V] and the new state.
    """
    outputs = []
    for t in range(query.shape[2]):
        state = state * g[:, :, t, None, None].exp()
        k, v = key[:, :, t, :, None], value[:, :, t, None]  # [B, H, K, 1], [B, H, 1, V]
        predicted = k.transpose(-1, -2) @ state
        state = state + k * (beta[:, :, t, None, None] * (v - predicted))
        outputs.append(query[:, :, t, None] @ state)
    return torch.cat(outputs, dim=2), state


def gated_delta_chunked(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The same result with matrix products: a triangular system inside each chunk, then a scan over chunks."""
    num_tokens = query.shape[2]
    query, key, value, g, beta = (_split_chunks(x) for x in (query, key, value, g, beta))

    # Log decay since the chunk began, this token's included. Differences of these sums go through exp: in fp32 their
    # rounding would be the largest error of all.
    decay = g.double().cumsum(dim=-1)
    future = torch.ones(CHUNK_SIZE, CHUNK_SIZE, dtype=torch.bool, device=g.device).triu(1)
    pairwise = (decay[..., :, None] - decay[..., None, :]).masked_fill(future, float("-inf")).exp().float()
    # What a token keeps of the state before the chunk, and what the state after the chunk keeps of a token.
    from_start = decay.exp().float()
    to_end = (decay[..., -1:] - decay).exp().float()

    # Token i writes w_i = beta_i (v_i - what the state already predicts); w solves a unit-triangular system.
    system = (beta[..., None] * key) @ key.transpose(-1, -2) * pairwise
    right = torch.cat((beta[..., None] * value, (beta * from_start)[..., None] * key), dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    writes, corrections = solved.split((value.shape[-1], key.shape[-1]), dim=-1)
    scores = query @ key.transpose(-1, -2) * pairwise  # [B, H, N, c, c]
    query, key = query * from_start[..., None], key * to_end[..., None]

    outputs = []
    for n in range(query.shape[2]):
        written = writes[:, :, n] - corrections[:, :, n] @ state
        outputs.append(query[:, :, n] @ state + scores[:, :, n] @ written)
        state = state * from_start[:, :, n, -1, None, None] + key[:, :, n].transpose(-1, -2) @ written
    return torch.cat(outputs, dim=2)[:, :, :num_tokens], state


def _split_chunks(x: Tensor) -> Tensor:
    """[B, H, T, ...] -> [B, H, N, c, ...]; the last chunk is filled up with zeros."""
    missing = -x.shape[2] % CHUNK_SIZE
    x = F.pad(x, (0, 0) * (x.dim() - 3) + (0, missing))
    return x.unflatten(2, (-1, CHUNK_SIZE))


@dataclass(frozen=True)
class DeltaWeights:
    """What a layer has between its projections. C = 2 * G * K + H * V conv channels of G key heads, W conv width."""

    conv: Tensor  # [C, W]
    A_log: Tensor  # [H]
    dt_bias: Tensor  # [H]
    norm: Tensor  # [V]
    eps: float


@dataclass(frozen=True)
class DeltaSegments:
    """What the C++ kernel has to know of segments."""

    rows: Tensor  # int32 [n, 6]: first row, new tokens, uncertain ones, state slot, first copy, copies
    copies: Tensor  # int32 [m, 2]: new tokens of the segment, slot for the state after them

    @classmethod
    def of(cls, segments: Segments) -> "DeltaSegments":
        rows, copies = list[tuple[int, ...]](), list[tuple[int, int]]()
        for start, each in zip(segments.starts, segments.each, strict=True):
            own = sorted(each.checkpoints)
            assert all(0 < after <= each.num_new - each.num_uncertain for after, _ in own)
            rows.append((start, each.num_new, each.num_uncertain, each.state_slot, len(copies), len(own)))
            copies += own
        return cls(_as_table(rows, 6), _as_table(copies, 2))

    @classmethod
    def alone(cls, num_new: int, state_slot: int) -> "DeltaSegments":
        """A single segment, over whose tokens the state moves."""
        return cls(_as_table([(0, num_new, 0, state_slot, 0, 0)], 6), _as_table([], 2))


def _as_table(rows: Sequence[tuple[int, ...]], num_columns: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32).view(-1, num_columns)


def has_delta_kernel(inputs: Tensor, recurrent: Tensor, windows: Tensor) -> bool:
    """Whether the C++ kernel can advance such states over `inputs`."""
    fits = windows.dtype in _KERNEL_DTYPES and recurrent.is_contiguous() and windows.is_contiguous()
    return fits and windows.device.type == "cpu" and not inputs.requires_grad and load_cpu_library() is not None


def gated_delta_segments(
    qkvz: Tensor,
    ba: Tensor,
    weights: DeltaWeights,
    recurrent: Tensor,
    windows: Tensor,
    segments: DeltaSegments,
    want_outputs: bool = True,
) -> Tensor | None:
    """All between the projections, by the C++ kernel -> fp32 [N, H * V], ready for the output's projection.

    qkvz [N, 2 * G * K + 2 * H * V] holds for each key head the query, key, R = H / G values and R gates; ba [N, 2H] R
    write strengths and R decays before their activations. Advances recurrent, fp32 [slots, H, K, V], and windows
    [slots, W - 1, C]; the inputs of the convolution are rounded to the dtype of the latter. See `has_delta_kernel`.
    """
    library = load_cpu_library()
    assert library is not None
    num_value_heads, key_dim, value_dim = recurrent.shape[1:]
    num_key_heads = (windows.shape[2] - num_value_heads * value_dim) // (2 * key_dim)
    conv = weights.conv if weights.conv.dtype in _KERNEL_DTYPES else weights.conv.float()
    small = (weights.A_log, weights.dt_bias, weights.norm)
    # Kept here until the call is over: a pointer does not keep what it points at.
    inputs = (qkvz.float().contiguous(), ba.float().contiguous(), conv.contiguous(), *(x.float() for x in small))
    out = torch.empty(qkvz.shape[0], num_value_heads * value_dim) if want_outputs else None
    library.gated_delta(
        *(x.data_ptr() for x in (*inputs, recurrent, windows)),
        None if out is None else out.data_ptr(),
        segments.rows.data_ptr(),
        segments.copies.data_ptr(),
        len(segments.rows),
        num_key_heads,
        num_value_heads,
        key_dim,
        value_dim,
        weights.conv.shape[1],
        _KERNEL_DTYPES[conv.dtype],
        _KERNEL_DTYPES[windows.dtype],
        weights.eps,
        torch.get_num_threads(),
        _LANES,
    )
    return out
