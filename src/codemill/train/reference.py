"""Log-probabilities of answers under the reference, the model before training: computed once, kept beside the run."""

import hashlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from codemill.data.packed_pairs import PackedPairs
from codemill.errors import CodemillError
from codemill.train.config import LoopConfig
from codemill.train.pair_batches import PairBatch, answer_log_probs, pair_batches
from codemill.train.parallel import Parallel
from codemill.train.policy import Policy

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Item = TypeVar("Item")


def reference_log_probs(
    policy: Policy, pairs: PackedPairs, directory: Path, loop: LoopConfig, parallel: Parallel | None = None
) -> Float32:
    """Sums over both answers of each pair [pairs, 2], mapped from a file in `directory`.

    The policy must be as it is before its first step; of one with an adapter the reference is the model without it.
    The file is named after a digest of weights, pairs and precision, so it is used for nothing else; an interrupted
    computation goes on where it was. Of several processes, which all call this, each computes its share; the main one
    writes. Raises CodemillError if the file is damaged or cannot be written.
    """
    parallel = Parallel() if parallel is None else parallel
    path = directory / f"reference-{_digest(policy, pairs, loop)}.npy"
    shape = (len(pairs.pairs), 2)
    if not parallel.of_main(path.exists()):
        _compute(policy, pairs, path, loop, parallel)
        parallel.wait()
    try:
        found: Float32 = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise CodemillError(f"{path} cannot be read ({error}): delete it to compute it again") from None
    if found.shape != shape or found.dtype != np.float32:
        raise CodemillError(f"{path} holds {found.dtype} {found.shape}, not {shape}: delete it to compute it again")
    if not np.isfinite(found).all():
        raise CodemillError(f"{path} is damaged, it holds what is no number: delete it to compute it again")
    return found


def _compute(policy: Policy, pairs: PackedPairs, path: Path, loop: LoopConfig, parallel: Parallel) -> None:
    partial, size = path.with_suffix(".partial"), loop.rows_per_micro_batch
    micro_batches = [range(start, min(start + size, len(pairs))) for start in range(0, len(pairs), size)]
    # The others have none of the file, and compute what the main process says is missing.
    known = _open_partial(partial, (len(pairs.pairs), 2)) if parallel.is_main else np.empty(0, np.float32)
    if parallel.is_main:
        micro_batches = [rows for rows in micro_batches if np.isnan(known[_members(pairs, rows)]).any()]
    micro_batches = parallel.of_main(micro_batches)
    with _as_reference(policy, loop):
        for rows, counts in _with_progress(parallel.share(micro_batches), parallel.is_main):
            (batch,) = pair_batches(pairs, None, rows, size)
            batch = cast(PairBatch, batch.to(policy.model.device))
            values = answer_log_probs(policy, batch)[0].cpu().numpy()
            for members, found in parallel.gather((_members(pairs, rows), values) if counts else None):
                if parallel.is_main:
                    known[members] = found
    parallel.reshard(policy)
    if parallel.is_main:
        _publish(known, partial, path)


def _members(pairs: PackedPairs, rows: Sequence[int]) -> Int64:
    """The pairs that are in these rows."""
    return np.concatenate([pairs.bins[row] for row in rows])


def _publish(known: Float32, partial: Path, path: Path) -> None:
    if np.isnan(known).any():
        raise CodemillError("the reference's log-probabilities are no numbers: the model to start from is damaged")
    cast(np.memmap, known).flush()
    os.replace(partial, path)


def _with_progress(items: Sequence[Item], is_shown: bool) -> Iterator[Item]:
    """Shows on a terminal how far this is; it may take as long as a third of an epoch."""
    from rich.console import Console
    from rich.progress import track

    is_hidden = not (is_shown and sys.stderr.isatty())
    yield from track(items, "reference", console=Console(stderr=True), transient=True, disable=is_hidden)


def _open_partial(path: Path, shape: tuple[int, int]) -> "np.memmap[tuple[int, int], np.dtype[np.float32]]":
    """What an interrupted computation left, or NaN everywhere."""
    try:
        found = np.lib.format.open_memmap(path, mode="r+")
        if found.shape == shape and found.dtype == np.float32:
            return found
    except (OSError, ValueError, EOFError):  # none, or one that a kill cut short while it was created
        pass
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.save(content, np.full(shape, np.nan, np.float32))
        path.write_bytes(content.getvalue())  # all of it: a hole in a mapped file kills where the disk is full
        return np.lib.format.open_memmap(path, mode="r+")
    except OSError as error:
        raise CodemillError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def _as_reference(policy: Policy, loop: LoopConfig) -> Iterator[None]:
    """Within this, the policy computes what the model before training does, as training would compute it."""
    is_bf16 = loop.precision == "bfloat16"
    autocast = torch.autocast(policy.model.device.type, torch.bfloat16, enabled=is_bf16)
    with torch.no_grad(), autocast, nullcontext() if policy.adapter is None else policy.reference():
        yield


def _digest(policy: Policy, pairs: PackedPairs, loop: LoopConfig) -> str:
    """Of everything that the log-probabilities depend on."""
    digest = hashlib.sha256(f"{loop.precision} {loop.rows_per_micro_batch} {pairs.capacity}".encode())
    for name, tensor in policy.model.state_dict().items():
        whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
        digest.update(whole.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    for pair in pairs.pairs:
        for document in (pair.chosen, pair.rejected):
            digest.update(np.int64(len(document)).tobytes())
            digest.update(document.ids.tobytes() + document.weights.tobytes())
    return digest.hexdigest()[:16]
