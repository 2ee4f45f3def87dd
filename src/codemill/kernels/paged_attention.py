"""Causal attention of new tokens over a paged KV cache.

On the CPU a C++ kernel does it, see `cpu/paged_attention.h`: all segments in one call, cut into pieces of up to 64
tokens. It reads each key and value once for all query heads and tokens of a piece. Its result for a token is the same
to the last bit whatever else is in the call, however the prompt is cut, wherever the blocks lie, and on any number of
threads: keys are attended in chunks of 256 positions counted from position 0, and chunks are merged in order. Only with
`may_use_tiles` does it depend on the cut: where the processor has AMX and the cache is bf16 or int8, segments of 32 new
tokens and more are then computed with tiles, two to three times as fast, with weights rounded to bf16. The rest of this
file is for other devices and dtypes, and for installations without a compiler.

Shapes: N new tokens of all sequences, T of one, S its keys, H query heads, H_kv key/value heads, K head_dim.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.kernels.attention import attend
from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.kv_cache import KVCache
from codemill.kernels.segments import Segment, Segments

# Below so many bytes of keys and values a sequence, copying all sequences side by side costs less than a call for each.
_GATHER_BYTES = 1 << 19
# What the C++ kernel takes.
_MAX_HEAD_DIM, _HEAD_DIM_UNIT = 256, 8
_QUERY_DTYPES = (torch.float32, torch.bfloat16)
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

    def __init__(self, segments: Segments, may_use_tiles: bool = False) -> None:
        """may_use_tiles: see above."""
        self._segments = segments
        self.may_use_tiles = may_use_tiles

    def attend(self, query: Tensor, key: Tensor, value: Tensor, cache: KVCache) -> Tensor:
        """query [N, H, K], key and value [N, H_kv, K] just written to the cache -> [N, H, K].

        Token i of a segment sees the segment's past and its new tokens up to itself.
        """
        query = query.contiguous()
        out = torch.empty_like(query)
        if _kernel_takes(query, cache):
            self._call_kernel(out, query, cache)
            return out
        gathers = self._may_gather(cache)
        if gathers:
            out[self._gathered.rows] = _attend_gathered(query, cache, self._gathered)
        for index, segment in enumerate(self._segments.each):
            if gathers and segment.num_new == 1:
                continue
            rows = slice(self._segments.starts[index], self._segments.starts[index] + segment.num_new)
            if segment.num_past == 0 and cache.key.dtype == key.dtype:
                out[rows] = attend(query[None, rows], key[None, rows], value[None, rows])[0]
            else:
                keys, values = cache.read(self._place(index), query.dtype)
                out[rows] = _attend_past(query[rows], keys, values, self._masks[index])
        return out

    def _call_kernel(self, out: Tensor, query: Tensor, cache: KVCache) -> None:
        """Write what `query` sees to `out` [N, H, K]."""
        library = load_cpu_library()
        assert library is not None
        library.paged_attention(
            query.data_ptr(),
            cache.key.data_ptr(),
            cache.value.data_ptr(),
            None if cache.key_scale is None else cache.key_scale.data_ptr(),
            None if cache.value_scale is None else cache.value_scale.data_ptr(),
            out.data_ptr(),
            self.lengths.data_ptr(),
            self.block_tables.data_ptr(),
            *self.block_tables.shape,
            self._segments.block_size,
            query.shape[1],
            *cache.key.shape[1:],
            _KERNEL_DTYPES[query.dtype],
            _KERNEL_DTYPES[cache.key.dtype],
            self.may_use_tiles,
            torch.get_num_threads(),
            _LANES,
        )

    @cached_property
    def lengths(self) -> Tensor:
        """Of each segment the first row, new and past tokens, int32 [n, 3]."""
        pairs = zip(self._segments.starts, self._segments.each, strict=True)
        return torch.tensor([(start, each.num_new, each.num_past) for start, each in pairs], dtype=torch.int32)

    @cached_property
    def block_tables(self) -> Tensor:
        """The blocks of each segment, int32 [n, most blocks of any]."""
        sizes = [-(-each.length // self._segments.block_size) for each in self._segments.each]
        tables = torch.zeros(len(sizes), max(sizes), dtype=torch.int32)
        for row, size, segment in zip(tables, sizes, self._segments.each, strict=True):
            row[:size] = torch.tensor(segment.block_table[:size], dtype=torch.int32)
        return tables

    def _may_gather(self, cache: KVCache) -> bool:
        """Whether the sequences with one new token are so short that they had better be gathered."""
        lengths = [segment.length for segment in self._segments.each if segment.num_new == 1]
        if cache.key.device.type != "cpu":
            return bool(lengths)
        row_bytes = 2 * cache.key[0].nbytes
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

    def _place(self, index: int) -> Tensor | slice:
        """All slots [S] of a segment; a slice where its blocks lie side by side, which takes no copy to read."""
        first, count = self._runs[index][0]
        return self._slots.get(index, slice(first, first + count))

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
    """Whether there is a C++ kernel for such queries; it takes a cache in any of its dtypes."""
    fits = dtype in _QUERY_DTYPES and head_dim <= _MAX_HEAD_DIM and head_dim % _HEAD_DIM_UNIT == 0
    return fits and device.type == "cpu" and load_cpu_library() is not None


def _kernel_takes(query: Tensor, cache: KVCache) -> bool:
    return (
        has_kernel(query.dtype, query.shape[-1], query.device)
        and cache.key.dtype in _KERNEL_DTYPES
        and all(x.is_contiguous() for x in cache.tensors.values())
        and not query.requires_grad
    )


def _attend_past(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """query [T, H, K] over key and value [S, H_kv, K] -> [T, H, K]."""
    return attend(query[None], key[None], value[None], mask)[0]


def _attend_gathered(query: Tensor, cache: KVCache, gathered: Gathered) -> Tensor:
    """The rows' queries, each over its own slots -> [n, H, K]."""
    found = cache.read(gathered.slots.flatten(), query.dtype)
    key, value = (x.unflatten(0, gathered.slots.shape) for x in found)
    return attend(query[gathered.rows, None], key, value, gathered.mask)[:, 0]


def paged_attention_reference(query: Tensor, cache: KVCache, segments: Segments) -> Tensor:
    """The definition, in fp32 and one token at a time -> [N, H, K]; the keys of this pass are in the cache already."""
    groups = query.shape[1] // cache.key.shape[1]
    out = []
    for start, segment in zip(segments.starts, segments.each, strict=True):
        slots = _all_slots(segments, segment).to(query.device)
        key, value = (x.repeat_interleave(groups, dim=1) for x in cache.read(slots, torch.float32))
        for i in range(segment.num_new):
            seen = segment.num_past + i + 1
            scores = torch.einsum("hk,shk->hs", query[start + i].float(), key[:seen]) * query.shape[-1] ** -0.5
            out.append(torch.einsum("hs,shk->hk", F.softmax(scores, dim=-1), value[:seen]))
    return torch.stack(out).to(query.dtype)
