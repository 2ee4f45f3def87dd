"""A training run on the terminal: what it would do, how far it is, and what it left."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from codemill.commands import print_json

if TYPE_CHECKING:
    from codemill.data.overlong import OverlongCounts
    from codemill.train.log import StepReport
    from codemill.train.loop import Trainer
    from codemill.train.run import RunPlan, TrainingRun


def run_training(make: Callable[[], "TrainingRun"], dry_run: bool, threads: int | None, as_json: bool) -> None:
    """Run, or with `dry_run` only print the plan. Ctrl-C leaves a checkpoint and raises KeyboardInterrupt."""
    if not is_main_process():
        _be_quiet()
    import torch

    from codemill.train.trainable_share import format_share, trainable_share

    if threads is not None:
        torch.set_num_threads(threads)
    run = make()
    if dry_run:
        plan = run.plan()
        if is_main_process():
            _print_plan(plan, as_json)
        return
    try:
        trainer = run.start()
        if trainer.parallel.is_main:
            print("".join(f"{line}\n" for line in left_out_lines(run.left_out)), end="", file=sys.stderr)
        if trainer.policy.adapter is not None and trainer.parallel.is_main:
            print(format_share(trainable_share(trainer.policy)), file=sys.stderr)
        reports = list(with_progress(run, trainer))
    except KeyboardInterrupt as stop:
        if is_main_process():
            print("stopped: the same command continues", file=sys.stderr)
        if stop.args == (signal.SIGTERM,):
            raise typer.Exit(128 + signal.SIGTERM) from None
        raise
    trainer.parallel.leave()
    if not trainer.parallel.is_main:
        return
    if as_json:
        loss = reports[-1].loss if reports else None  # None: there was nothing left to do
        print_json({"model": str(run.result), "steps": trainer.loop.steps, "loss": loss})
    else:
        print(f"model: {run.result}")


def is_main_process() -> bool:
    """Whether this is the process that speaks, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def left_out_lines(left_out: "Mapping[str, OverlongCounts]") -> list[str]:
    """What is not read of the data, a line each."""
    return [f"{name}: {line}" for name, counts in left_out.items() for line in counts.lines()]


def _be_quiet() -> None:
    """No bars of downloads and no warnings, which the main process shows too."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    logging.getLogger("codemill").setLevel(logging.ERROR)


def with_progress(run: "TrainingRun", trainer: "Trainer") -> Iterator["StepReport"]:
    """The run's reports, shown as a bar on a terminal and as a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    steps, log_every = trainer.loop.steps, trainer.loop.log_every
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
    is_hidden = not console.is_terminal or not trainer.parallel.is_main
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=is_hidden) as progress:
        task = progress.add_task("", total=steps)
        for report in run.train(trainer):
            text = _line(report)
            progress.update(task, completed=report.step, description=text)
            if not trainer.parallel.is_main:
                yield report
                continue
            measured = {**(report.validation or {}), **(report.evaluation or {})}
            if measured or report.skipped or (not console.is_terminal and report.step % log_every == 0):
                console.print(f"step {report.step}: {text}{_listed(measured)}", highlight=False, soft_wrap=True)
            yield report


def _line(report: "StepReport") -> str:
    skipped = ", skipped: its gradient is an outlier" if report.skipped else ""
    rate = f"{report.tokens_per_second:,.0f} tokens/s"
    return f"loss {report.loss:.3f}, {rate}, MFU {100 * report.mfu:.0f} %{_listed(report.summary)}{skipped}"


def _listed(figures: Mapping[str, float]) -> str:
    return "".join(f", {name} {value:.3f}" for name, value in figures.items())


def _print_plan(plan: "RunPlan", as_json: bool) -> None:
    if as_json:
        print_json({**asdict(plan), "tokens": plan.tokens, "total_memory": sum(plan.memory.values())})
        return
    print(f"{plan.steps:,} steps of {plan.rows_per_step} x {plan.context:,} tokens, {plan.tokens:,} tokens in all")
    if (data := plan.data) is not None:
        fill = 100 * data.tokens / (data.rows * plan.context)
        print(f"{data.documents:,} documents in {data.rows:,} rows, {fill:.1f} % full")
        print(
            f"{data.learned:,} of their {data.tokens:,} tokens are learned ({100 * data.learned / data.tokens:.3g} %)"
        )
    share = 100 * plan.trainable / plan.parameters
    print(f"{plan.trainable:,} of {plan.parameters:,} parameters are trained ({share:.3g} %)")
    if plan.share:
        from codemill.train.trainable_share import format_share

        print(format_share(plan.share))
    for line in left_out_lines(plan.left_out):
        print(line)
    total = sum(plan.memory.values())
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in plan.memory.items())
    where = f" on each of {plan.processes} processes" if plan.processes > 1 else ""
    print(f"about {total / 1e9:.2f} GB of memory{where}: {parts}")
