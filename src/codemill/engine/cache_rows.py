"""Rows of a `Cache` as sequences come and go: allocated, repeated, removed, given more room."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from codemill.config import ModelConfig
from codemill.errors import CodemillError
from codemill.models.cache import Cache, KVCache, LayerState, LinearState


def allocate_rows(config: ModelConfig, num_rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Cache:
    """An empty cache. Raises CodemillError if there is not the memory for it."""
    try:
        return Cache.allocate(config, num_rows, capacity, dtype, device)
    except RuntimeError:  # what torch raises when an allocation fails, on every device
        raise _no_memory(num_rows, capacity) from None


def repeat_rows(cache: Cache, rows: Sequence[int]) -> Cache:
    """A cache whose row i is a copy of row `rows[i]`."""
    index = torch.tensor(rows, device=_device(cache))
    return Cache(_map(cache, lambda x: x.index_select(0, index)), [cache.lengths[row] for row in rows], cache.capacity)


def keep_rows(cache: Cache, rows: Sequence[int]) -> tuple[Cache, list[int]]:
    """Keep `rows` in place as far as possible -> the smaller cache, and the old row of each of its rows.

    Rows from the end fill the gaps, so that little is copied; the memory of the removed rows stays allocated.
    """
    size = len(rows)
    from_end = [row for row in rows if row >= size]
    order = [row if row in rows else from_end.pop() for row in range(size)]
    moves = [(row, old) for row, old in enumerate(order) if row != old]

    def shrink(x: Tensor) -> Tensor:
        for row, old in moves:
            x[row].copy_(x[old])
        return x[:size]

    return Cache(_map(cache, shrink), [cache.lengths[row] for row in order], cache.capacity), order


def grow_capacity(cache: Cache, capacity: int) -> Cache:
    """A cache with the same content and room for `capacity` tokens. Raises CodemillError if memory runs out."""
    try:
        layers = [_grow_layer(layer, capacity) for layer in cache.layers]
    except RuntimeError:
        raise _no_memory(len(cache.lengths), capacity) from None
    return Cache(layers, cache.lengths, capacity)


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of KV cache that one token of one sequence takes, all layers together."""
    num_layers = config.layer_types.count("full_attention")
    return 2 * num_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


def _grow_layer(layer: LayerState, capacity: int) -> LayerState:
    if isinstance(layer, LinearState):
        return layer
    return KVCache(_longer(layer.key, capacity), _longer(layer.value, capacity))


def _longer(x: Tensor, capacity: int) -> Tensor:
    """Keys or values [B, S, H_kv, K] -> the same with `capacity` slots."""
    longer = x.new_zeros(x.shape[0], capacity, *x.shape[2:])
    longer[:, : x.shape[1]] = x
    return longer


def _map(cache: Cache, change: Callable[[Tensor], Tensor]) -> list[LayerState]:
    """The layers with `change` applied to each tensor; the first dim of all of them is the row."""
    layers: list[LayerState] = []
    for layer in cache.layers:
        if isinstance(layer, LinearState):
            layers.append(LinearState(change(layer.recurrent), change(layer.conv)))
        else:
            layers.append(KVCache(change(layer.key), change(layer.value)))
    return layers


def _device(cache: Cache) -> torch.device:
    layer = cache.layers[0]
    return layer.recurrent.device if isinstance(layer, LinearState) else layer.key.device


def _no_memory(num_rows: int, capacity: int) -> CodemillError:
    return CodemillError(
        f"not enough memory for a cache of {num_rows} x {capacity} tokens: lower max_tokens or max_model_len"
    )
