"""`codemill train`: training runs from a TOML file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.commands import add_verb, epilog, options
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
CURVES_EXAMPLES = """
codemill train curves runs/out/sft
codemill train curves runs/out/sft runs/out/lora --output curves.png
"""
Config = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What to train, on what, for how long.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; repeatable.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the settings and say what would be done.")]


def register(app: typer.Typer) -> None:
    examples = "\n".join(each.strip() for each in (PRETRAIN_EXAMPLES, SFT_EXAMPLES, DPO_EXAMPLES, CURVES_EXAMPLES))
    train = typer.Typer(help="Train a model.", epilog=epilog(examples), rich_markup_mode=None)
    add_verb(train, pretrain, PRETRAIN_EXAMPLES)
    add_verb(train, sft, SFT_EXAMPLES)
    add_verb(train, dpo, DPO_EXAMPLES)
    add_verb(train, curves, CURVES_EXAMPLES)
    app.add_typer(train, name="train")


def pretrain(
    config: Config,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a small code model from nothing; what Ctrl-C has stopped, the same command continues."""
    from codemill.train.config import PretrainConfig
    from codemill.train.config_file import load_config

    settings = load_config(PretrainConfig, config, overrides or ())

    def make() -> "TrainingRun":
        from codemill.train.pretrain import Pretraining

        return Pretraining(settings)

    run_training(make, dry_run, threads, as_json)


def sft(
    config: Config,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune a model, whole or by LoRA, on conversations; what Ctrl-C has stopped, the same command continues."""
    from codemill.train.config_file import load_config
    from codemill.train.sft_config import SftConfig

    settings = load_config(SftConfig, config, overrides or ())

    def make() -> "TrainingRun":
        from codemill.commands.train_evaluation import benchmark
        from codemill.train.sft import Sft

        return Sft(settings, benchmark)

    run_training(make, dry_run, threads, as_json)


def dpo(
    config: Config,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Make the chosen answers likelier than the rejected ones: DPO, IPO or SimPO; Ctrl-C and resume as with sft."""
    from codemill.train.config_file import load_config
    from codemill.train.dpo_config import DpoConfig

    settings = load_config(DpoConfig, config, overrides or ())

    def make() -> "TrainingRun":
        from codemill.commands.train_evaluation import benchmark
        from codemill.train.dpo import Dpo

        return Dpo(settings, benchmark)

    run_training(make, dry_run, threads, as_json)


def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Output folders of training runs.")],
    output: Annotated[Path, typer.Option(help="The picture; its suffix says the format.")] = Path("curves.svg"),
) -> None:
    """Draw the losses of runs, and what was measured on the way, in one picture."""
    from codemill.train.curves import draw
    from codemill.train.log import TrainingLog

    draw({run.name: TrainingLog(run / "log.jsonl").read() for run in runs}, output)
    print(output)
