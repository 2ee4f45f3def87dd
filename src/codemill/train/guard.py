"""Steps that would spoil a run: a loss that is no number, and gradients far larger than those before."""

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

from codemill.errors import CodemillError
from codemill.train.log import StepReport

_WINDOW = 64  # steps whose norms are the measure
_FIRST = 16  # before so many nothing is an outlier
_MOST_SKIPPED = 8  # in a row


class SpikeGuard:
    """Skips the update of a step whose gradient norm is more than `factor` times the median of those before it.

    Its memory are the run's reports, so that a resumed run decides alike. factor 0: it skips nothing.
    """

    def __init__(self, factor: float, before: Iterable[StepReport] = ()) -> None:
        self._factor = factor
        self._norms: deque[float] = deque(maxlen=_WINDOW)
        self._skipped_in_a_row = 0
        for report in before:
            self._note(report.grad_norm, report.skipped)

    def skips(self, step: int, loss: float, norm: float) -> bool:
        """Whether step number `step`, from 1, is to change no weight.

        Raises CodemillError if the loss or the norm is no number, and after many skipped steps in a row.
        """
        for name, value in (("loss", loss), ("gradient's norm", norm)):
            if not math.isfinite(value):
                raise CodemillError(f"the {name} became {value} at step {step}: lower optimizer.lr and matrix_lr")
        is_outlier = self._factor > 0 and len(self._norms) >= _FIRST and norm > self._factor * median(self._norms)
        self._note(norm, is_outlier)
        if self._skipped_in_a_row > _MOST_SKIPPED:
            raise CodemillError(
                f"the gradient's norm was over {self._factor:g} times its median for {_MOST_SKIPPED + 1} steps, the "
                f"last of them step {step} with {norm:.3g}: lower optimizer.lr and matrix_lr, or look at the data"
            )
        return is_outlier

    def _note(self, norm: float, skipped: bool) -> None:
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if not skipped:
            self._norms.append(norm)
