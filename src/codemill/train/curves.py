"""Pictures of runs: the loss, and what was measured on the way."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.errors import CodemillError, UsageError
from codemill.train.log import StepReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SMOOTH = 0.05  # of the steps, averaged into the bold line


def has_matplotlib() -> bool:
    return find_spec("matplotlib") is not None


def draw(runs: Mapping[str, Sequence[StepReport]], path: Path) -> None:
    """The curves of one or several runs, by name, in one picture; the suffix of `path` says its format.

    Raises UsageError for runs without a step, or without matplotlib, and CodemillError if it cannot be written.
    """
    if not has_matplotlib():
        raise UsageError("pictures need matplotlib: pip install 'codemill[train]'")
    for name, reports in runs.items():
        if not reports:
            raise UsageError(f"{name} has no steps to draw")
    from matplotlib.figure import Figure

    names = _measured(runs)
    panels: list[Any] = ["loss", "gradient norm", *names]
    figure = Figure(figsize=(6.0, 2.6 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for name, reports in runs.items():
            _draw_panel(axes, panel, name, reports)
        axes.set_title(panel, loc="left", fontsize=10)
        axes.grid(alpha=0.25)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(fontsize=8)
    axes.set_xlabel("step")
    try:
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise CodemillError(f"{path} cannot be written: {error}") from None


def _measured(runs: Mapping[str, Sequence[StepReport]]) -> list[str]:
    """Names of what the runs measured besides, in the order in which it appeared."""
    found: dict[str, None] = {}
    for reports in runs.values():
        for report in reports:
            found |= dict.fromkeys([*report.summary, *(report.evaluation or {})])
    return list(found)


def _draw_panel(axes: "Axes", panel: str, name: str, reports: Sequence[StepReport]) -> None:
    if panel == "loss":
        _draw_smoothed(axes, name, [(report.step, report.loss) for report in reports])
        for kind in dict.fromkeys(key for report in reports for key in report.validation or ()):
            points = [(report.step, report.validation[kind]) for report in reports if report.validation]
            axes.plot(*zip(*points, strict=True), "o-", markersize=3, label=f"{name}: {kind}")
    elif panel == "gradient norm":
        _draw_smoothed(axes, name, [(report.step, report.grad_norm) for report in reports])
        axes.set_yscale("log")
    else:
        points = [
            (r.step, value) for r in reports if (value := {**r.metrics, **(r.evaluation or {})}.get(panel)) is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "-" if len(points) > 30 else "o-", markersize=3, label=name)


def _draw_smoothed(axes: "Axes", name: str, points: Sequence[tuple[int, float]]) -> None:
    """Every step in pale, and the mean of those around it in full colour."""
    steps, values = zip(*points, strict=True)
    half = max(1, int(len(values) * _SMOOTH)) // 2
    means = [_mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    (line,) = axes.plot(steps, means, label=name)
    axes.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.8)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
