"""The log of a run for TensorBoard."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from codemill.errors import UsageError
from codemill.train.log import StepReport


def check_tensorboard() -> None:
    """Raises UsageError if it is not installed."""
    if find_spec("tensorboard") is None:
        raise UsageError("loop.tensorboard needs TensorBoard: pip install 'codemill[train]'")


class TensorBoardLog:
    """Event files in a directory. `start`: steps done before; what was written of later ones is hidden."""

    def __init__(self, directory: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory), purge_step=start + 1)

    def append(self, report: StepReport) -> None:
        scalars = {
            "train/loss": report.loss,
            "train/grad_norm": report.grad_norm,
            "train/learning_rate_scale": report.learning_rate_scale,
            "speed/tokens_per_second": report.tokens_per_second,
            "speed/mfu": report.mfu,
            **{f"train/{name}": value for name, value in report.metrics.items()},
            **{f"validation/{name}": value for name, value in (report.validation or {}).items()},
            **{f"evaluation/{name}": value for name, value in (report.evaluation or {}).items()},
        }
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, report.step)

    def close(self) -> None:
        self._writer.close()
