"""Prompts that outlive the process: KV blocks and state checkpoints in a `BlockStore`.

Shapes: S slots of a block, H_kv key/value heads, K head_dim.
"""

import torch
from torch import Tensor

from codemill.engine.block_store import OUT_OF_MEMORY, BlockStore
from codemill.models.cache import Cache

_BLOCK, _STATE = b"block", b"state"


class DiskCache:
    """The `Keeper` that writes prompts to disk as they are computed, and reads them when they come back.

    Several caches (the model's and its drafter's) share the blocks, and are kept together.
    """

    def __init__(self, store: BlockStore, caches: list[Cache]) -> None:
        self.store = store
        self._caches = caches

    def note_use(self, names: list[bytes]) -> None:
        """These blocks were reused, from memory perhaps: what lies on disk of them is not to age."""
        self.store.touch([_BLOCK + name for name in names])

    def save_block(self, name: bytes, block: int) -> None:
        """Keep the keys and values of a block."""
        self._save(_BLOCK + name, self._block(block))

    def save_state(self, name: bytes, slot: int) -> None:
        """Keep the state in a slot."""
        self._save(_STATE + name, self._state(slot))

    def restore_block(self, name: bytes, block: int) -> bool:
        """Fill a block with what was kept under that name; False if nothing was."""
        return self._restore(_BLOCK + name, self._block(block))

    def has_state(self, name: bytes) -> bool:
        return self.store.contains(_STATE + name)

    def restore_state(self, name: bytes, slot: int) -> bool:
        """Fill a state slot with what was kept under that name; False if nothing was."""
        return self._restore(_STATE + name, self._state(slot))

    def _save(self, key: bytes, views: dict[str, Tensor]) -> None:
        if self.store.contains(key):
            return
        try:
            copies = {name: view.clone() for name, view in views.items()}
        except OUT_OF_MEMORY:  # of the copy; who computes goes on
            self.store.count_dropped()
            return
        self.store.put(key, copies)

    @torch.inference_mode()
    def _restore(self, key: bytes, views: dict[str, Tensor]) -> bool:
        if not self.store.contains(key):
            return False
        stored = self.store.get(key)
        if stored is None or {name: x.shape for name, x in stored.items()} != {n: x.shape for n, x in views.items()}:
            return False
        try:
            for name, view in views.items():
                view.copy_(stored[name])
        except OUT_OF_MEMORY:
            return False
        return True

    def _block(self, block: int) -> dict[str, Tensor]:
        """Views of one block in all layers, [S, H_kv, K] each, and scales [S, H_kv] of int8."""
        views: dict[str, Tensor] = {}
        for number, cache in enumerate(self._caches):
            slots = slice(block * cache.block_size, (block + 1) * cache.block_size)
            for layer, kv in enumerate(cache.kv_caches):
                views |= {f"{number}.{layer}.{name}": tensor[slots] for name, tensor in kv.tensors.items()}
        return views

    def _state(self, slot: int) -> dict[str, Tensor]:
        """Views of one state slot in all layers."""
        views = {}
        for layer, state in enumerate(self._caches[0].linear_states):
            views[f"{layer}.recurrent"], views[f"{layer}.conv"] = state.recurrent[slot], state.conv[slot]
        return views
