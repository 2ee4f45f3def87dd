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

from codemill.data.packing import Document, pack
from codemill.errors import CodemillError
from codemill.models import CausalLM
from codemill.train import objective
from codemill.train.batch import Batch
from codemill.train.guard import SpikeGuard
from codemill.train.interruption import Interruption
from codemill.train.log import StepReport, TrainingLog
from codemill.train.loop import Trainer
from codemill.train.objective import CrossEntropy
from codemill.train.policy import Policy
from codemill.train.source import row_order, validation_batches
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
    batch, terms = Batch.of(rows.take(range(len(rows)))), CrossEntropy()
    totals = terms.counts([batch])
    assert totals == {"cross_entropy": pytest.approx(rows.loss_weights.sum())}
    assert terms.loss(Policy(model), batch, totals).value.item() == pytest.approx(
        total / totals["cross_entropy"], rel=1e-5
    )


def test_columns_that_are_padding_in_all_rows_are_not_read() -> None:
    """But for some, so that there are few widths."""
    for length, width in ((1, 64), (64, 64), (65, 128), (190, 192), (195, 200), (200, 200)):
        batch = Batch.of(pack([Document.of(np.ones(length, int))], 200, pad_id=0))
        assert batch.input_ids.shape == (1, width)
        assert batch.num_tokens == length


def gradients(model: CausalLM) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_have_the_gradients_of_one_batch(size: int, tmp_path: Path) -> None:
    losses, results = [], []
    for rows_per_micro_batch in (6, size):
        loop = replace(LOOP, rows_per_step=6, rows_per_micro_batch=rows_per_micro_batch)
        trainer = make_trainer(tmp_path, loop)
        losses.append(trainer._accumulate(trainer.source.micro_batches(0))[0])
        results.append(gradients(trainer.policy.model))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert set(results[0]) == {name for name, _ in make_model().named_parameters()}
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_recomputing_layers_has_the_same_gradients(tmp_path: Path) -> None:
    results = []
    for recompute in (False, True):
        trainer = make_trainer(tmp_path, replace(LOOP, recompute=recompute))
        loss, _ = trainer._accumulate(trainer.source.micro_batches(0))
        results.append((loss, gradients(trainer.policy.model)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(each, results[1][1][name]) for name, each in results[0][1].items())


def test_the_loss_of_a_step_is_the_weighted_mean(trainer: Trainer) -> None:
    expected = trainer.measure(trainer.source.micro_batches(0))
    report = next(trainer.run())
    assert report.loss == pytest.approx(expected, rel=1e-6)
    assert (report.step, report.learning_rate_scale, report.validation) == (1, 0.5, None)


def test_it_learns(tmp_path: Path) -> None:
    loop = replace(LOOP, steps=40, evaluate_every=40)
    trainer = make_trainer(tmp_path, loop)
    everything = validation_batches(make_rows(30), loop)
    before = trainer.measure(everything)
    reports = list(trainer.run())
    assert [report.step for report in reports] == list(range(1, 41))
    assert trainer.measure(everything) < before - 0.5
    assert before == pytest.approx(math.log(61), abs=0.2)


def test_validation_where_it_is_due_and_at_the_end(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, replace(LOOP, steps=5))
    trainer.validation = {**trainer.validation, "nothing": []}
    reports = list(trainer.run())
    assert [report.step for report in reports if report.validation is not None] == [3, 5]
    assert reports[-1].validation == {"held_out": trainer.measure(trainer.validation["held_out"])}


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
    assert same_weights(resumed.policy.model, whole.policy.model)
    logged = TrainingLog(tmp_path / "killed" / "log.jsonl").read()
    assert [untimed(report) for report in logged] == [untimed(report) for report in expected]


def untimed(report: StepReport) -> StepReport:
    return replace(report, tokens_per_second=0.0, mfu=0.0)


def test_bf16_keeps_weights_and_gradients_in_fp32(tmp_path: Path) -> None:
    exact, rounded = (make_trainer(tmp_path, replace(LOOP, precision=name)) for name in ("float32", "bfloat16"))
    losses = [trainer._accumulate(trainer.source.micro_batches(0))[0] for trainer in (exact, rounded)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    expected = gradients(exact.policy.model)
    for name, gradient in gradients(rounded.policy.model).items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() < 0.1 * expected[name].norm(), name


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = make_trainer(tmp_path)
    list(first.run())
    again = make_trainer(tmp_path, seed=1)
    assert list(again.run()) == []
    assert same_weights(again.policy.model, first.policy.model)


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of this step, counted from 0."""
    original = Trainer._accumulate
    steps = iter(range(1000))

    def accumulate(self: Trainer, *arguments: Any) -> Any:
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
    assert stopped.checkpoints.paths()[-1].name == "step-00000003"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = make_trainer(tmp_path / "stopped", seed=99)
    assert [report.step for report in resumed.run()] == [4, 5, 6]
    assert same_weights(resumed.policy.model, whole.policy.model)


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signal
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
    def spoiled(hidden: torch.Tensor, *_: object) -> torch.Tensor:
        loss = hidden.sum()
        if place == "loss":
            return loss * math.nan
        loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    monkeypatch.setattr(objective, "chunked_cross_entropy", spoiled)
    with pytest.raises(CodemillError, match=rf"the {place}.* became nan at step 1: lower optimizer.lr"):
        list(trainer.run())
    assert same_weights(trainer.policy.model, make_model())
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


def reports_with(norms: list[float]) -> list[StepReport]:
    return [StepReport(step, 1.0, norm, 1.0, 1.0) for step, norm in enumerate(norms, 1)]


def test_an_outlier_changes_nothing_and_does_not_count(tmp_path: Path) -> None:
    guard = SpikeGuard(4.0, reports_with([1.0] * 16))
    assert not guard.skips(17, 1.0, 3.9)
    assert [guard.skips(18 + i, 1.0, 50.0) for i in range(8)] == [True] * 8
    assert not guard.skips(26, 1.0, 1.0)
    assert not SpikeGuard(0.0, reports_with([1.0] * 16)).skips(17, 1.0, 1e9)
    assert not SpikeGuard(4.0, reports_with([1.0] * 15)).skips(16, 1.0, 1e9)


def test_many_outliers_in_a_row_are_an_error_also_after_a_resume() -> None:
    before = reports_with([1.0] * 20)
    before += [replace(each, skipped=True) for each in reports_with([90.0] * 8)]
    with pytest.raises(CodemillError, match=r"9 steps, the last of them step 29 with 90: lower optimizer.lr"):
        SpikeGuard(4.0, before).skips(29, 1.0, 90.0)


def test_a_skipped_step_leaves_the_weights(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, replace(LOOP, skip_spikes_over=4.0))
    weights = {name: each.clone() for name, each in trainer.policy.model.state_dict().items()}
    guard = SpikeGuard(4.0, reports_with([1e-9] * 16))
    assert trainer._step(0, guard).skipped
    assert all(torch.equal(each, weights[name]) for name, each in trainer.policy.model.state_dict().items())
    assert not trainer._step(0, SpikeGuard(4.0)).skipped
    assert not all(torch.equal(each, weights[name]) for name, each in trainer.policy.model.state_dict().items())


def test_nothing_to_learn_from_is_an_error(trainer: Trainer) -> None:
    batch = trainer.source.micro_batches(0)[0]
    with pytest.raises(CodemillError, match=r"a step has nothing to learn from .its cross_entropy counts 0"):
        trainer.measure([replace(batch, weights=torch.zeros_like(batch.weights))])
