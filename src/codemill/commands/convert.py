"""`codemill convert`: a model as a GGUF file or as a Hugging Face directory."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.commands import add_verb, options, print_json

if TYPE_CHECKING:
    from codemill.models.convert import Conversion

EXAMPLES = """
codemill convert Qwen/Qwen3-0.6B qwen3-0.6b.gguf --type q8_0
codemill convert ./my-model my-model.gguf
codemill convert qwen3-0.6b-q4_k_m.gguf ./qwen3-0.6b --type bf16
codemill convert random:qwen3-0.6b /tmp/random.gguf --type q4_0 --force
"""


def register(app: typer.Typer) -> None:
    add_verb(app, convert, EXAMPLES)


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Directory, .gguf file, hub id, random:PRESET or 'embedded'.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A name that ends in .gguf, or a directory.")],
    kind: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="f32, f16, bf16, for GGUF also q8_0, q4_0; default: the source's."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is there.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """A model as a GGUF file, which llama.cpp reads too, or as a Hugging Face directory.

    Tokenizer, chat template and generation defaults come along. One tensor at a time is in memory.
    """
    from codemill.models.convert import convert as convert_model

    spec = None if source == "embedded" and not Path(source).exists() else source
    done = convert_model(spec, destination, kind, force)
    if as_json:
        print_json(_as_object(done))
    else:
        print(_summary(done))


def _as_object(done: "Conversion") -> dict[str, object]:
    return {
        "path": str(done.path),
        "type": done.type,
        "tensors": done.num_tensors,
        "bytes": done.num_bytes,
        "fallback_f16": list(done.fallback),
    }


def _summary(done: "Conversion") -> str:
    text = f"{done.path}: {done.num_tensors} tensors as {done.type}, {done.num_bytes / 1e9:,.3f} GB"
    if done.fallback:
        count = len(done.fallback)
        text += f"; {count} of them as f16, because their rows are no multiple of 32 ({done.fallback[0]}, ...)"
    return text
