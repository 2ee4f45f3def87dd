"""`codemill merge`: a model with an adapter merged into its weights."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.commands import add_verb, options, print_json

if TYPE_CHECKING:
    from codemill.models.convert import Conversion

EXAMPLES = """
codemill merge Qwen/Qwen3-0.6B runs/out/lora/adapter ./merged
codemill merge ./my-model ./my-adapter merged.gguf --type q8_0
codemill merge embedded ./my-adapter ./merged --force --json
"""


def register(app: typer.Typer) -> None:
    add_verb(app, merge, EXAMPLES)


def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Directory, .gguf file, hub id or 'embedded'.")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Directory with an adapter, as PEFT saves it.")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="A directory, or a name that ends in .gguf.")],
    kind: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="f32, f16, bf16, for GGUF also q8_0, q4_0; default: the base's."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is there.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """A model with a LoRA or DoRA adapter merged into its weights, as a Hugging Face directory or a GGUF file.

    Tokenizer, chat template and generation defaults come along. One tensor at a time is in memory.
    """
    from codemill.models.convert import convert
    from codemill.models.lora_config import LoraConfig

    adapter = adapter.expanduser()
    trained_on = LoraConfig.load(adapter).base
    if trained_on and Path(trained_on).name != Path(base).name:
        print(f"note: the adapter was trained on {trained_on}, and is merged into {base}", file=sys.stderr)
    spec = None if base == "embedded" and not Path(base).exists() else base
    done = convert(spec, destination, kind, force, adapter)
    if as_json:
        print_json({"path": str(done.path), "type": done.type, "tensors": done.num_tensors, "bytes": done.num_bytes})
    else:
        print(_summary(done))


def _summary(done: "Conversion") -> str:
    return f"{done.path}: {done.num_tensors} tensors as {done.type}, {done.num_bytes / 1e9:,.3f} GB"
