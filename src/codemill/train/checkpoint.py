"""Checkpoints of a run: written beside their final place, then renamed, so that a kill leaves the last one whole.

Each is a directory that all processes write together with `torch.distributed.checkpoint`, one process alone too, so
that a run continues on more of them, or on fewer.
"""

import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer

from codemill.errors import CodemillError
from codemill.train.checkpoint_state import apply_state, state_to_fill, training_state
from codemill.train.objective import Objective
from codemill.train.parallel import Parallel, is_lost_connection

_PREFIX = "step-"
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in one directory, `step-00000200` and so on; the newest `keep` of them stay."""

    directory: Path
    keep: int
    parallel: Parallel = field(default_factory=Parallel)

    def paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(path for path in self.directory.glob(f"{_PREFIX}*") if not path.suffix)

    def save(
        self, step: int, trained: nn.Module, optimizers: Sequence[Optimizer], objective: Objective | None = None
    ) -> Path:
        """Write everything that the steps from `step` on depend on. Raises CodemillError if that fails."""
        path = self.directory / f"{_PREFIX}{step:08d}"
        temporary = path.with_suffix(_PARTIAL)
        state = training_state(step, trained, optimizers, objective, self.parallel.rank)
        with one_line_errors(f"{path} cannot be written", "is the disk full?"):
            if self.parallel.is_main:
                self._remove_partial()
                temporary.mkdir(parents=True)
            self.parallel.wait()
            try:
                dcp.save(state, storage_writer=dcp.FileSystemWriter(temporary), no_dist=self._is_alone)
            except (Exception, CheckpointException) as error:
                if is_lost_connection(error):
                    raise
                self.parallel.wait()
                if self.parallel.is_main:
                    self._remove_partial()
                raise
            if self.parallel.is_main:
                self._publish(temporary, path)
            self.parallel.wait()
        return path

    def restore(self, trained: nn.Module, optimizers: Sequence[Optimizer], objective: Objective | None = None) -> int:
        """Load the newest checkpoint and return its step; 0 if there is none."""
        paths = self.paths()
        if not paths:
            for old in sorted(self.directory.glob(f"{_PREFIX}*.pt")):
                raise CodemillError(f"{old} is of an older version: finish that run with it, or delete it")
            return 0
        with one_line_errors(f"{paths[-1]} cannot be resumed from", "delete it to use the one before"):
            reader = dcp.FileSystemReader(paths[-1])
            state = state_to_fill(reader.read_metadata(), trained, optimizers, self.parallel.rank)
            dcp.load(state, storage_reader=reader, no_dist=self._is_alone)
            return apply_state(state, trained, optimizers, objective, self.parallel.rank)

    def remove(self, path: Path) -> None:
        """Remove one of them. A kill in the middle of it leaves nothing that looks whole."""
        partial = path.with_suffix(_PARTIAL)
        os.replace(path, partial)
        shutil.rmtree(partial)

    def clear(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _is_alone(self) -> bool:
        return self.parallel.num_processes == 1

    def _publish(self, temporary: Path, path: Path) -> None:
        if path.exists():
            os.replace(path, path.with_suffix(".old" + _PARTIAL))
        os.replace(temporary, path)
        _sync(self.directory)
        for old in self.paths()[: -self.keep]:
            self.remove(old)
        self._remove_partial()

    def _remove_partial(self) -> None:
        for path in self.directory.glob(f"*{_PARTIAL}"):
            shutil.rmtree(path)


@contextmanager
def one_line_errors(problem: str, advice: str) -> Iterator[None]:
    """What goes wrong in a block, as one line. Damaged files raise whatever their bytes happen to mean.

    That another process is gone is left as it is: no file is wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one process without a process group, which is no mistake here
        try:
            yield
        except CheckpointException as error:
            cause = next((each for each, _ in error.failures.values()), error)
            if is_lost_connection(cause):
                raise cause from None
            raise CodemillError(f"{problem} ({_first_line(cause)}): {advice}") from None
        except Exception as error:
            if is_lost_connection(error):
                raise
            raise CodemillError(f"{problem} ({_first_line(error)}): {advice}") from None


def _sync(directory: Path) -> None:
    """Make the names in it last through a power cut; the files were synced when they were written."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
