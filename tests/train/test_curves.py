"""Pictures and TensorBoard's files of a run."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from codemill import cli
from codemill.errors import CodemillError, UsageError
from codemill.train.curves import draw
from codemill.train.log import StepReport, TrainingLog
from train.conftest import LOOP, make_trainer


def reports() -> list[StepReport]:
    return [
        StepReport(
            step=step,
            loss=5.0 / step,
            grad_norm=1.0,
            learning_rate_scale=1.0,
            tokens_per_second=10.0,
            validation={"held_out": 4.0} if step % 2 == 0 else None,
            metrics={"accuracy": 0.5},
            evaluation={"humaneval pass@1": 0.25} if step == 4 else None,
        )
        for step in range(1, 5)
    ]


def test_a_picture_has_a_panel_for_each_quantity(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    draw({"one": reports(), "two": reports()[:2]}, path)
    groups = {element.get("id", "") for element in ElementTree.parse(path).iter()}
    assert sum(name.startswith("axes_") for name in groups) == 4
    first = path.read_bytes()
    draw({"one": reports(), "two": reports()[:2]}, path)
    assert len(path.read_bytes()) == len(first)  # only generated names differ


def test_runs_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="empty has no steps"):
        draw({"empty": []}, tmp_path / "curves.svg")
    with pytest.raises(CodemillError, match=r"curves.xyz cannot be written"):
        draw({"one": reports()}, tmp_path / "curves.xyz")


def test_the_verb_draws_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for report in reports():
        (tmp_path / "run").mkdir(exist_ok=True)
        TrainingLog(tmp_path / "run" / "log.jsonl").append(report)
    output = tmp_path / "picture.png"
    assert cli.main(["train", "curves", str(tmp_path / "run"), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert output.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["train", "curves", str(tmp_path / "none")]) == 2
    assert "none has no steps to draw" in capsys.readouterr().err


def test_tensorboard_reads_each_step_once_after_a_resume(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loop = replace(LOOP, tensorboard=True)
    for _, stopped in zip(range(3), make_trainer(tmp_path, loop).run(), strict=False):
        assert stopped.step <= 3
    list(make_trainer(tmp_path, loop).run())  # from step 2, so the third is done again
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = TrainingLog(tmp_path / "log.jsonl").read()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    found = [event.value for event in events.Scalars("train/loss")]
    assert found == pytest.approx([report.loss for report in logged], rel=1e-6)
    assert [event.step for event in events.Scalars("validation/held_out")] == [3, 6]
