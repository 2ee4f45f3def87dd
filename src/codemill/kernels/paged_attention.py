"""Causal attention of new tokens over a paged KV cache.

On the CPU a C++ kernel does it, see `cpu/paged_attention.h`: all segments in one call, cut into pieces of 16 tokens. It
reads each key and value once for all query heads and tokens of a piece. Its result for a token is the same to the
last bit whatever else is in the call, however the prompt is cut, wherever the blocks lie, and on any number of threads:
keys are attended in chunks of 256 positions counted from position 0, and chunks are merged in order. The rest of this
file is for other devices and dtypes, and for installations without a compiler.

Shapes: N new tokens of all sequences, T of one, S its keys, H query heads, H_kv key/value heads, K head_dim, C slots.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.kernels.attention import attend
from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.segments import Segment, Segments

# Below so many bytes of keys and values a sequence, copying all sequences side by side costs less than a call for each.
_GATHER_BYTES = 1 << 19
# What the C++ kernel takes.
_MAX_HEAD_DIM, _HEAD_DIM_UNIT = 256, 8
_KERNEL_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_LANES = 16  # of the widest variant; the tests try the others


@dataclass(frozen=True)
class Gathered:
    """Sequences with one new token each, attended in one call: rows of the pass, slots [n, S] and what is visible."""

    rows: Tensor
    slots: Tensor
    mask: Tensor  # bool [n, 1, 1, S]


class PagedAttention:
    """How the segments of one pass are attended; made once, used by every full-attention layer."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments

    def attend(self, query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor) -> Tensor:
        """query [N, H, K], key and value [N, H_kv, K] just written to the caches [C, H_kv, K] -> [N, H, K].

        Token i of a segment sees the segment's past and its new tokens up to itself.
        """
        query = query.contiguous()
        out = torch.empty_like(query)
        if _kernel_takes(query, key_cache, value_cache):
            self._call_kernel(out, query, key_cache, value_cache)
            return out
        gathers = self._may_gather(key_cache)
        if gathers:
            out[self._gathered.rows] = _attend_gathered(query, key_cache, value_cache, self._gathered)
        for index, segment in enumerate(self._segments.each):
            if gathers and segment.num_new == 1:
                continue
            rows = slice(self._segments.starts[index], self._segments.starts[index] + segment.num_new)
            if segment.num_past == 0:
                out[rows] = attend(query[None, rows], key[None, rows], value[None, rows])[0]
            else:
                keys, values = self._view(index, key_cache), self._view(index, value_cache)
                out[rows] = _attend_past(query[rows], keys, values, self._masks[index])
        return out

    def _call_kernel(self, out: Tensor, query: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
        """Write what `query` sees to `out` [N, H, K]."""
        library = load_cpu_library()
        assert library is not None
        library.paged_attention(
            query.data_ptr(),
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            None,
            None,
            out.data_ptr(),
            self._lengths.data_ptr(),
            self._block_tables.data_ptr(),
            *self._block_tables.shape,
            self._segments.block_size,
            query.shape[1],
            *key_cache.shape[1:],
            _KERNEL_DTYPES[query.dtype],
            _KERNEL_DTYPES[key_cache.dtype],
            torch.get_num_threads(),
            _LANES,
        )

    @cached_property
    def _lengths(self) -> Tensor:
        """Of each segment the first row, new and past tokens, int32 [n, 3]."""
        pairs = zip(self._segments.starts, self._segments.each, strict=True)
        return torch.tensor([(start, each.num_new, each.num_past) for start, each in pairs], dtype=torch.int32)

    @cached_property
    def _block_tables(self) -> Tensor:
        """The blocks of each segment, int32 [n, most blocks of any]."""
        sizes = [-(-each.length // self._segments.block_size) for each in self._segments.each]
        tables = torch.zeros(len(sizes), max(sizes), dtype=torch.int32)
        for row, size, segment in zip(tables, sizes, self._segments.each, strict=True):
            row[:size] = torch.tensor(segment.block_table[:size], dtype=torch.int32)
        return tables

    def _may_gather(self, cache: Tensor) -> bool:
        """Whether the sequences with one new token are so short that they had better be gathered."""
        lengths = [segment.length for segment in self._segments.each if segment.num_new == 1]
        if cache.device.type != "cpu":
            return bool(lengths)
        row_bytes = 2 * cache.shape[1] * cache.shape[2] * cache.element_size()
        return len(lengths) > 1 and max(lengths) * row_bytes <= _GATHER_BYTES

    @cached_property
    def _gathered(self) -> Gathered:
        chosen = [i for i, segment in enumerate(self._segments.each) if segment.num_new == 1]
        lengths = [self._segments.each[i].length for i in chosen]
        device = self._segments.device
        slots = torch.zeros(len(chosen), max(lengths), dtype=torch.long)
        for row, i in enumerate(chosen):
            slots[row, : lengths[row]] = _all_slots(self._segments, self._segments.each[i])
            slots[row, lengths[row] :] = slots[row, 0]  # its own: weight 0 would not keep another's NaN out
        visible = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        rows = torch.tensor([self._segments.starts[i] for i in chosen], device=device)
        return Gathered(rows, slots.to(device), visible[:, None, None].to(device))

    def _view(self, index: int, cache: Tensor) -> Tensor:
        """All keys or values [S, H_kv, K] of a segment; no copy where its blocks lie side by side."""
        runs, slots = self._runs[index], self._slots.get(index)
        if slots is None:
            first, count = runs[0]
            return cache[first : first + count]
        return cache.index_select(0, slots)

    @cached_property
    def _runs(self) -> list[list[tuple[int, int]]]:
        return [self._segments.runs(each.block_table, 0, each.length) for each in self._segments.each]

    @cached_property
    def _slots(self) -> dict[int, Tensor]:
        """For the segments whose blocks do not lie side by side, all their slots [S]."""
        scattered = [i for i, runs in enumerate(self._runs) if len(runs) > 1]
        return {i: _all_slots(self._segments, self._segments.each[i]).to(self._segments.device) for i in scattered}

    @cached_property
    def _masks(self) -> list[Tensor | None]:
        """What each new token of a segment sees, bool [T, S]; None for a single token, which sees all."""
        return [None if each.num_new == 1 else self._mask(each) for each in self._segments.each]

    def _mask(self, segment: Segment) -> Tensor:
        ones = torch.ones(segment.num_new, segment.length, dtype=torch.bool, device=self._segments.device)
        return ones.tril(segment.num_past)


def _all_slots(segments: Segments, segment: Segment) -> Tensor:
    size = segments.block_size
    blocks = torch.tensor(segment.block_table[: -(-segment.length // size)], dtype=torch.long)
    return (blocks[:, None] * size + torch.arange(size)).flatten()[: segment.length]


def has_kernel(dtype: torch.dtype, head_dim: int, device: torch.device) -> bool:
    """Whether there is a C++ kernel for such queries, keys and values."""
    fits = dtype in _KERNEL_DTYPES and head_dim <= _MAX_HEAD_DIM and head_dim % _HEAD_DIM_UNIT == 0
    return fits and device.type == "cpu" and load_cpu_library() is not None


def _kernel_takes(query: Tensor, key_cache: Tensor, value_cache: Tensor) -> bool:
    return (
        has_kernel(query.dtype, query.shape[-1], query.device)
        and query.dtype == key_cache.dtype
        and key_cache.is_contiguous()
        and value_cache.is_contiguous()
        and not query.requires_grad
    )


def _attend_past(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """query [T, H, K] over key and value [S, H_kv, K] -> [T, H, K]."""
    return attend(query[None], key[None], value[None], mask)[0]


def _attend_gathered(query: Tensor, key_cache: Tensor, value_cache: Tensor, gathered: Gathered) -> Tensor:
    """The rows' queries, each over its own slots -> [n, H, K]."""
    num_rows, num_slots = gathered.slots.shape
    index = gathered.slots.flatten()
    key = key_cache.index_select(0, index).unflatten(0, (num_rows, num_slots))
    value = value_cache.index_select(0, index).unflatten(0, (num_rows, num_slots))
    return attend(query[gathered.rows, None], key, value, gathered.mask)[:, 0]


def paged_attention_reference(query: Tensor, key_cache: Tensor, value_cache: Tensor, segments: Segments) -> Tensor:
    """The definition, in fp32 and one token at a time -> [N, H, K]; the keys of this pass are in the cache already."""
    groups = query.shape[1] // key_cache.shape[1]
    out = []
    for start, segment in zip(segments.starts, segments.each, strict=True):
        slots = _all_slots(segments, segment).to(query.device)
        key, value = (x[slots].float().repeat_interleave(groups, dim=1) for x in (key_cache, value_cache))
        for i in range(segment.num_new):
            seen = segment.num_past + i + 1
            scores = torch.einsum("hk,shk->hs", query[start + i].float(), key[:seen]) * query.shape[-1] ** -0.5
            out.append(torch.einsum("hs,shk->hk", F.softmax(scores, dim=-1), value[:seen]))
    return torch.stack(out).to(query.dtype)
