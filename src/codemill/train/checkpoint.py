"""Checkpoints of a run: written beside their final place, then renamed, so that a kill leaves the last one whole."""

import os
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from codemill.errors import CodemillError

_PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in one directory, `step-00000200.pt` and so on; the newest `keep` of them stay."""

    directory: Path
    keep: int

    def paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.directory.glob(f"{_PREFIX}*.pt"))

    def save(self, step: int, model: nn.Module, optimizers: Sequence[Optimizer]) -> Path:
        """Write everything that the steps from `step` on depend on. Raises CodemillError if that fails."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{_PREFIX}{step:08d}.pt"
        temporary = path.with_suffix(".partial")
        state = {
            "step": step,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "rng": torch.get_rng_state(),
        }
        try:
            torch.save(state, temporary)
        except RuntimeError as error:
            temporary.unlink(missing_ok=True)
            raise CodemillError(f"{path} cannot be written ({_first_line(error)}): is the disk full?") from None
        os.replace(temporary, path)
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path

    def restore(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> int:
        """Load the newest checkpoint and return its step; 0 if there is none."""
        paths = self.paths()
        if not paths:
            return 0
        try:
            state = torch.load(paths[-1], weights_only=True)
            model.load_state_dict(state["model"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            torch.set_rng_state(state["rng"])
            return int(state["step"])
        except (RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise CodemillError(
                f"{paths[-1]} cannot be resumed from ({_first_line(error)}): delete it to use the one before"
            ) from None

    def clear(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
