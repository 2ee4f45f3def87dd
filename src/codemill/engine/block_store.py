"""The part of the prefix cache that outlives the process: entries by content, written by a thread of its own."""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from codemill.engine.block_directory import BlockDirectory
from codemill.engine.block_file import decode_entry, encode_entry
from codemill.errors import UsageError

OUT_OF_MEMORY = (MemoryError, RuntimeError)
"""Python's error and PyTorch's, which is a RuntimeError on every device."""
_LOG = logging.getLogger("codemill.engine")
_QUEUE_BYTES = 256 << 20
_RUNS, _RUN_LENGTH = 8, 32  # of the sample of a parameter
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class StoreCounters:
    """Since the start: `get` found or did not, entries kept, entries given up (too large, too fast, no disk)."""

    hits: int
    misses: int
    writes: int
    dropped: int
    bytes_on_disk: int


class BlockStore:
    """KV blocks and state checkpoints on disk, each a mapping of names to tensors under a key made of its content.

    Nothing here holds up or breaks the engine: what cannot be written is dropped and counted, what cannot be read is a
    miss. Where writing fails once, for want of space say, one warning tells and no more is written. Entries that were
    used least recently make room for new ones, also where other models or processes wrote them.
    """

    def __init__(self, directory: Path, fingerprint: str, max_bytes: int, max_queued_bytes: int = _QUEUE_BYTES) -> None:
        """fingerprint: of all that shapes the tensors, from `model_fingerprint`; entries of another are not seen.
        max_bytes: of all files in the directory. max_queued_bytes: of tensors that wait to be written.

        Raises UsageError if the directory cannot be made or written.
        """
        try:
            self._directory = BlockDirectory(directory, fingerprint, max_bytes)
        except OSError as error:
            reason = error.strerror
            raise UsageError(f"the prefix cache cannot be kept in {directory} ({reason}): choose another") from None
        self._root = directory
        self._max_queued_bytes = max_queued_bytes
        self._queue: dict[bytes, dict[str, Tensor]] = {}  # in order; an entry leaves it when it is written
        self._queued_bytes = 0
        self._is_open = True
        self._hits = self._misses = self._writes = self._dropped = 0
        self._changed = threading.Condition()
        self._writer = threading.Thread(target=self._run, name="prefix-cache-writer", daemon=True)
        self._writer.start()

    @property
    def counters(self) -> StoreCounters:
        with self._changed:
            counts = self._hits, self._misses, self._writes, self._dropped
            return StoreCounters(*counts, self._directory.num_bytes)

    def contains(self, key: bytes) -> bool:
        """Whether the entry is on disk, as far as this process knows without looking."""
        return key in self._directory

    def put(self, key: bytes, tensors: Mapping[str, Tensor]) -> None:
        """Have the entry written, unless it is there. The tensors are the store's from now on."""
        num_bytes = _num_bytes(tensors)
        with self._changed:
            if key in self._directory or key in self._queue:
                return
            if not self._is_open or self._queued_bytes + num_bytes > self._max_queued_bytes:
                self._dropped += 1
                return
            self._queue[key] = dict(tensors)
            self._queued_bytes += num_bytes
            self._changed.notify_all()

    def count_dropped(self) -> None:
        """An entry was given up before it came here."""
        with self._changed:
            self._dropped += 1

    def get(self, key: bytes) -> dict[str, Tensor] | None:
        """The entry, bit for bit and on the CPU, which thereby counts as used; None if it is not there or damaged."""
        tensors = self._read(key)
        with self._changed:
            self._hits += tensors is not None
            self._misses += tensors is None
        return tensors

    def touch(self, keys: Sequence[bytes]) -> None:
        """Count the entries of a prefix, first block first, as used, though the engine had them in memory.

        The first one counts as used last, so that it outlives the others, which are worth nothing without it.
        """
        for key in reversed(keys):
            self._directory.touch(key)

    def flush(self) -> None:
        """Wait until nothing is left to write."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue)

    def close(self) -> None:
        """Write what is left, and nothing any more; entries can still be read."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        self._writer.join()

    def _read(self, key: bytes) -> dict[str, Tensor] | None:
        try:
            data = self._directory.read(key)
            return None if data is None else decode_entry(key, data)
        except OUT_OF_MEMORY:  # the file may be sound
            return None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            path = self._directory.path(key)
            _LOG.warning("prefix cache: %s is damaged (%s); it is deleted and will be computed again", path, reason)
            self._directory.delete(key)
            return None

    def _run(self) -> None:
        try:
            while (key := self._next_key()) is not None:
                self._settle(key, self._directory.write(key, encode_entry(key, self._queue[key])))
        except (OSError, *OUT_OF_MEMORY) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            _LOG.warning("prefix cache: cannot write to %s (%s); no more is kept there", self._root, reason)
        finally:
            self._give_up()

    def _next_key(self) -> bytes | None:
        """Of the entry to write next; None once the store is closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or not self._is_open)
            return next(iter(self._queue), None)

    def _settle(self, key: bytes, is_kept: bool) -> None:
        with self._changed:
            self._queued_bytes -= _num_bytes(self._queue.pop(key))
            self._writes += is_kept
            self._dropped += not is_kept
            self._changed.notify_all()

    def _give_up(self) -> None:
        """The writer ends: nobody is to wait for it."""
        with self._changed:
            self._is_open = False
            self._dropped += len(self._queue)
            self._queue.clear()
            self._changed.notify_all()


def model_fingerprint(model: torch.nn.Module, *parts: str) -> str:
    """A digest of the model's parameters and buffers, and of `parts`: whatever else shapes what is stored.

    Of each tensor it takes the name, dtype and shape, and a sample: 8 runs of 32 elements spread over it, and the first
    and last element, so that a mapped checkpoint is not read whole. Other weights differ in it; a change to a few
    elements or rows only may be missed.
    """
    digest = blake2b(repr(parts).encode(), digest_size=16)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(_sample(tensor.detach()).cpu().numpy().tobytes())
    return digest.hexdigest()


def _sample(tensor: Tensor) -> Tensor:
    """Some elements of a tensor as integers [n]; only their memory is touched, however the tensor is laid out."""
    last = tensor.numel() - 1
    if last < _RUNS * _RUN_LENGTH:
        indices = torch.arange(last + 1)
    else:
        starts = torch.arange(_RUNS) * (last - _RUN_LENGTH) // (_RUNS - 1)
        runs = starts[:, None] + torch.arange(_RUN_LENGTH)  # [runs, elements]
        indices = torch.cat([runs.flatten(), torch.tensor([last])])
    coordinates = []  # of the last dimension first; `torch.unravel_index` imports half of PyTorch's compiler
    for size in reversed(tensor.shape):
        coordinates.append(indices % size)
        indices = indices // size
    return tensor.view(_INTEGERS[tensor.itemsize])[tuple(reversed(coordinates))].flatten()


def _num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
