"""`codemill train`: training runs from a TOML file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.commands import add_verb, epilog, options
from codemill.commands.train_processes import said_once
from codemill.commands.train_progress import run_training

if TYPE_CHECKING:
    from codemill.train.run import TrainingRun

PRETRAIN_EXAMPLES = """
codemill train pretrain runs/embedded.toml
codemill train pretrain runs/embedded.toml --set loop.steps=20 --set output=runs/out/trial
codemill train pretrain runs/embedded.toml --dry-run
"""
SFT_EXAMPLES = """
codemill train sft sft.toml
codemill train sft sft.toml --set model=Qwen/Qwen3-0.6B --set loop.epochs=2 --dry-run
codemill train sft sft.toml --set lora.rank=16 --set lora.quantization=int4
"""
DPO_EXAMPLES = """
codemill train dpo dpo.toml
codemill train dpo dpo.toml --set dpo.loss=simpo --set dpo.gamma=0.5
"""
DISTILL_EXAMPLES = """
codemill train distill distill.toml
codemill train distill distill.toml --set distill.teachers.default=Qwen/Qwen3-8B --dry-run
"""
CURVES_EXAMPLES = """
codemill train curves runs/out/sft
codemill train curves runs/out/sft runs/out/lora --output curves.png
"""
Config = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What to train, on what, for how long.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; repeatable.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the settings and say what would be done.")]
MakeRun = Callable[[], "TrainingRun"]
"""Makes a run whose settings were checked; imports what trains."""


def register(app: typer.Typer) -> None:
    everything = (PRETRAIN_EXAMPLES, SFT_EXAMPLES, DPO_EXAMPLES, DISTILL_EXAMPLES, CURVES_EXAMPLES)
    examples = "\n".join(each.strip() for each in everything)
    train = typer.Typer(help="Train a model.", epilog=epilog(examples), rich_markup_mode=None)
    for function, own_examples in zip((pretrain, sft, dpo, distill), everything[:4], strict=True):
        add_verb(train, _verb(function), own_examples)
    add_verb(train, curves, CURVES_EXAMPLES)
    app.add_typer(train, name="train")


def _verb(read: Callable[[Path, Sequence[str]], MakeRun]) -> Callable[..., None]:
    """The verb that trains what `read` makes of a configuration; it has the same options for every method."""

    def verb(
        config: Config,
        overrides: Overrides = None,
        dry_run: DryRun = False,
        threads: options.Threads = None,
        as_json: options.AsJson = False,
    ) -> None:
        with said_once():
            run_training(read(config, overrides or ()), dry_run, threads, as_json)

    verb.__name__, verb.__doc__ = read.__name__, read.__doc__
    return verb


def pretrain(config: Path, overrides: Sequence[str]) -> MakeRun:
    """Train a small code model from nothing; what Ctrl-C has stopped, the same command continues."""
    from codemill.train.config import PretrainConfig
    from codemill.train.config_file import load_config

    settings = load_config(PretrainConfig, config, overrides)

    def make() -> "TrainingRun":
        from codemill.train.pretrain import Pretraining

        return Pretraining(settings)

    return make


def sft(config: Path, overrides: Sequence[str]) -> MakeRun:
    """Fine-tune a model, whole or by LoRA, on conversations; what Ctrl-C has stopped, the same command continues."""
    from codemill.train.config_file import load_config
    from codemill.train.sft_config import SftConfig

    settings = load_config(SftConfig, config, overrides)

    def make() -> "TrainingRun":
        from codemill.commands.train_evaluation import checked_benchmark
        from codemill.train.sft import Sft

        return Sft(settings, checked_benchmark(settings.evaluation))

    return make


def dpo(config: Path, overrides: Sequence[str]) -> MakeRun:
    """Make the chosen of two answers likelier than the rejected one: DPO, IPO or SimPO."""
    from codemill.train.config_file import load_config
    from codemill.train.dpo_config import DpoConfig

    settings = load_config(DpoConfig, config, overrides)

    def make() -> "TrainingRun":
        from codemill.commands.train_evaluation import checked_benchmark
        from codemill.train.dpo import Dpo

        return Dpo(settings, checked_benchmark(settings.evaluation))

    return make


def distill(config: Path, overrides: Sequence[str]) -> MakeRun:
    """Teach a model what larger ones know, on its own answers or on texts."""
    from codemill.train.config_file import load_config
    from codemill.train.distill_config import DistillConfig

    settings = load_config(DistillConfig, config, overrides)

    def make() -> "TrainingRun":
        from codemill.commands.train_evaluation import checked_benchmark
        from codemill.train.distill import Distill

        return Distill(settings, checked_benchmark(settings.evaluation))

    return make


def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Output folders of training runs.")],
    output: Annotated[Path, typer.Option(help="The picture; its suffix says the format.")] = Path("curves.svg"),
) -> None:
    """Draw the losses of runs, and what was measured on the way, in one picture."""
    from codemill.train.curves import draw
    from codemill.train.log import TrainingLog

    draw({run.name: TrainingLog(run / "log.jsonl").read() for run in runs}, output)
    print(output)
