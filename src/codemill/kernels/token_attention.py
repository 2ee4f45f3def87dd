"""Causal attention over a paged KV cache, one token at a time: the same to the last bit however tokens come together.

Shapes: N new tokens of all sequences, S keys of one, H query heads, H_kv key/value heads, K head_dim.
"""

from functools import cached_property

import torch
from torch import Tensor

from codemill.kernels.attention import attend
from codemill.kernels.kv_cache import KVCache
from codemill.kernels.segments import Segments


class TokenAttention:
    """As `PagedAttention`, with a call for each token over exactly the keys that it sees.

    Which tokens share a call, and how many keys are hidden in it, changes how sums are rounded. Here nothing is shared,
    so a token's result does not depend on chunks of its prompt, on drafts or on other sequences.
    """

    def __init__(self, segments: Segments) -> None:
        self._segments = segments

    def attend(self, query: Tensor, key: Tensor, value: Tensor, cache: KVCache) -> Tensor:
        """query [N, H, K], key and value [N, H_kv, K] just written to the cache -> [N, H, K]."""
        out = torch.empty_like(query)
        for start, segment, slots in zip(self._segments.starts, self._segments.each, self._slots, strict=True):
            keys, values = (x[None] for x in cache.read(slots, query.dtype))
            for i in range(segment.num_new):
                seen = segment.num_past + i + 1
                out[start + i] = attend(query[None, start + i, None], keys[:, :seen], values[:, :seen])[0, 0]
        return out

    @cached_property
    def _slots(self) -> list[Tensor]:
        """The slots of each segment, [S]; always gathered, so that where blocks lie makes no difference either."""
        found = []
        for segment in self._segments.each:
            runs = self._segments.runs(segment.block_table, 0, segment.length)
            slots = [slot for first, count in runs for slot in range(first, first + count)]
            found.append(torch.tensor(slots, device=self._segments.device))
        return found
