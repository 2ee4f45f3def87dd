"""`codemill train`: training runs from a TOML file."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.commands import add_verb, epilog, options, print_json

if TYPE_CHECKING:
    from codemill.train.config import PretrainConfig
    from codemill.train.log import StepReport
    from codemill.train.pretrain import Pretraining

EXAMPLES = """
codemill train pretrain runs/embedded.toml
codemill train pretrain runs/embedded.toml --set loop.steps=20 --set output=runs/out/trial
codemill train pretrain runs/embedded.toml --dry-run
"""


def register(app: typer.Typer) -> None:
    train = typer.Typer(help="Train a model.", epilog=epilog(EXAMPLES), rich_markup_mode=None)
    add_verb(train, pretrain, EXAMPLES)
    app.add_typer(train, name="train")


def pretrain(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What to train, on what, for how long.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the settings and say what would be done.")] = False,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a small code model from nothing; what Ctrl-C has stopped, the same command continues."""
    from codemill.train.config import PretrainConfig
    from codemill.train.config_file import load_config

    settings = load_config(PretrainConfig, config, overrides or ())
    if dry_run:
        _print_plan(settings, as_json)
        return
    import torch

    from codemill.train.pretrain import Pretraining

    if threads is not None:
        torch.set_num_threads(threads)
    run = Pretraining(settings)
    try:
        reports = list(_with_progress(run))
    except KeyboardInterrupt:
        print("stopped: the same command continues", file=sys.stderr)
        raise
    if as_json:
        loss = reports[-1].loss if reports else None  # None: there was nothing left to do
        print_json({"model": str(run.model_directory), "steps": settings.loop.steps, "loss": loss})
    else:
        print(f"model: {run.model_directory}")


def _print_plan(settings: "PretrainConfig", as_json: bool) -> None:
    loop, context = settings.loop, settings.data.context
    tokens = loop.steps * loop.rows_per_step * context
    if as_json:
        print_json({"steps": loop.steps, "rows_per_step": loop.rows_per_step, "context": context, "tokens": tokens})
    else:
        print(f"{loop.steps} steps of {loop.rows_per_step} x {context} tokens, {tokens:,} in all")


def _with_progress(run: "Pretraining") -> Iterator["StepReport"]:
    """The run's reports, shown as a bar on a terminal and as a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    steps, log_every = run.config.loop.steps, run.config.loop.log_every
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("preparing data", total=steps)
        for report in run.run():
            text = f"loss {report.loss:.3f}, {report.tokens_per_second:,.0f} tokens/s"
            progress.update(task, completed=report.step, description=text)
            if report.validation is not None:
                text += "".join(f", {name} {loss:.3f}" for name, loss in report.validation.items())
            if report.validation is not None or (not console.is_terminal and report.step % log_every == 0):
                console.print(f"step {report.step}: {text}", highlight=False)
            yield report
