"""The loop: its order, its gradients, its log, and that a stopped run continues to the same bits."""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codemill.errors import CodemillError
from codemill.models import CausalLM
from codemill.train import loop as loop_module
from codemill.train.interruption import Interruption
from codemill.train.loop import StepReport, Trainer, TrainingLog, mean_loss, row_order, summed_loss
from train.conftest import LOOP, make_model, make_rows, make_trainer


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    draws = row_order(13, seed=5, start=0, count=39)
    epochs = [draws[start : start + 13] for start in (0, 13, 26)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_is_a_function_of_the_seed_and_the_place() -> None:
    draws = row_order(13, seed=5, start=0, count=39)
    assert row_order(13, seed=5, start=9, count=11) == draws[9:20]
    assert row_order(13, seed=6, start=0, count=39) != draws


def test_the_loss_is_that_of_each_document_alone() -> None:
    """Computed once more from whole logits, one document after the other."""
    model, rows = make_model(), make_rows(12)
    total = 0.0
    for row in range(len(rows)):
        for number in range(rows.document_ids[row].max() + 1):
            places = np.flatnonzero(rows.document_ids[row] == number)
            ids = torch.from_numpy(rows.input_ids[row, places].astype(np.int64))
            logprobs = model(ids[None])[0].log_softmax(-1)
            weights = torch.from_numpy(rows.loss_weights[row, places])
            total += -(weights[1:] * logprobs[:-1].gather(1, ids[1:, None])[:, 0]).sum().item()
    assert summed_loss(model, rows, range(len(rows))).item() == pytest.approx(total, rel=1e-5)
    assert mean_loss(model, rows) == pytest.approx(total / rows.loss_weights.sum(), rel=1e-5)


def gradients(model: CausalLM) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_have_the_gradients_of_one_batch(size: int, tmp_path: Path) -> None:
    losses, results = [], []
    for rows_per_micro_batch in (6, size):
        loop = replace(LOOP, rows_per_step=6, rows_per_micro_batch=rows_per_micro_batch)
        trainer = make_trainer(tmp_path, loop)
        losses.append(trainer._accumulate(range(6)))
        results.append(gradients(trainer.model))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert set(results[0]) == {name for name, _ in make_model().named_parameters()}
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_the_loss_of_a_step_is_the_weighted_mean(trainer: Trainer) -> None:
    indices = row_order(len(trainer.rows), LOOP.seed, 0, LOOP.rows_per_step)
    expected = summed_loss(trainer.model, trainer.rows, indices).item() / trainer.rows.loss_weights[indices].sum()
    report = next(trainer.run())
    assert report.loss == pytest.approx(expected, rel=1e-6)
    assert (report.step, report.learning_rate_scale, report.validation) == (1, 0.5, None)


def test_it_learns(tmp_path: Path) -> None:
    loop = replace(LOOP, steps=40, evaluate_every=40)
    trainer = make_trainer(tmp_path, loop)
    before = mean_loss(trainer.model, trainer.rows)
    reports = list(trainer.run())
    assert [report.step for report in reports] == list(range(1, 41))
    assert mean_loss(trainer.model, trainer.rows) < before - 0.5
    assert before == pytest.approx(math.log(61), abs=0.2)


def test_validation_where_it_is_due_and_at_the_end(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, replace(LOOP, steps=5))
    trainer.validation["nothing"] = make_rows(0)
    reports = list(trainer.run())
    assert [report.step for report in reports if report.validation is not None] == [3, 5]
    assert reports[-1].validation == {"held_out": mean_loss(trainer.model, trainer.validation["held_out"])}


def same_weights(first: CausalLM, second: CausalLM) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_a_killed_run_continues_to_the_same_bits(stop: int, precision: str, tmp_path: Path) -> None:
    loop = replace(LOOP, precision=precision)
    whole = make_trainer(tmp_path / "whole", loop)
    expected = list(whole.run())
    killed = make_trainer(tmp_path / "killed", loop)
    for _, report in zip(range(stop), killed.run(), strict=False):
        assert report.step <= stop
    # Once there is a checkpoint, the weights of the new process do not matter.
    resumed = make_trainer(tmp_path / "killed", loop, seed=99 if stop >= LOOP.checkpoint_every else 0)
    reports = list(resumed.run())
    assert [report.step for report in reports] == list(range(stop // 2 * 2 + 1, 7))
    assert same_weights(resumed.model, whole.model)
    logged = TrainingLog(tmp_path / "killed" / "log.jsonl").read()
    assert [untimed(report) for report in logged] == [untimed(report) for report in expected]


def untimed(report: StepReport) -> StepReport:
    return replace(report, tokens_per_second=0.0)


def test_bf16_keeps_weights_and_gradients_in_fp32(tmp_path: Path) -> None:
    exact, rounded = (make_trainer(tmp_path, replace(LOOP, precision=name)) for name in ("float32", "bfloat16"))
    losses = [trainer._accumulate(range(4)) for trainer in (exact, rounded)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    expected = gradients(exact.model)
    for name, gradient in gradients(rounded.model).items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() < 0.1 * expected[name].norm(), name


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = make_trainer(tmp_path)
    list(first.run())
    again = make_trainer(tmp_path, seed=1)
    assert list(again.run()) == []
    assert same_weights(again.model, first.model)


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of this step, counted from 0."""
    original = Trainer._accumulate
    steps = iter(range(1000))

    def accumulate(self: Trainer, *arguments: Any) -> float:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_accumulate", accumulate)


def test_ctrl_c_saves_the_step_in_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_trainer(tmp_path / "whole")
    list(whole.run())
    with monkeypatch.context() as patch:
        interrupted_at(2, patch)
        stopped = make_trainer(tmp_path / "stopped")
        with pytest.raises(KeyboardInterrupt):
            list(stopped.run())
    assert stopped.checkpoints.paths()[-1].name == "step-00000003.pt"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = make_trainer(tmp_path / "stopped", seed=99)
    assert [report.step for report in resumed.run()] == [4, 5, 6]
    assert same_weights(resumed.model, whole.model)


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            interruption.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_nan_is_an_error_and_changes_no_weight(place: str, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(logits, targets)
        if place == "loss":
            return loss * math.nan
        loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    monkeypatch.setattr(loop_module, "weighted_cross_entropy", spoiled)
    with pytest.raises(CodemillError, match=rf"the {place}.* became nan at step 1: lower optimizer.lr"):
        list(trainer.run())
    assert same_weights(trainer.model, make_model())
    assert trainer.checkpoints.paths() == []


def report(step: int) -> StepReport:
    return StepReport(step, 1.5, 0.1, 1.0, 1000.0, {"tasks": 2.0} if step % 2 else None)


def test_the_log_is_read_as_written(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "run" / "log.jsonl")
    assert log.read() == []
    log.truncate(0)
    reports = [report(step) for step in (1, 2, 3)]
    for each in reports:
        log.append(each)
    assert log.read() == reports
    log.truncate(2)
    assert log.read() == reports[:2]


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_last_line_that_was_cut_is_left_out(cut: int, tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "log.jsonl")
    for step in (1, 2):
        log.append(report(step))
    log.path.write_bytes(log.path.read_bytes()[:-cut])
    assert log.read() == [report(1)]
    log.truncate(5)
    log.append(report(2))
    assert log.read() == [report(1), report(2)]
