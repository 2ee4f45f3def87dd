"""`codemill quantize`: a copy of a model with packed weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.commands import add_verb, options, print_json
from codemill.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from codemill.models.quantize_directory import Quantized

EXAMPLES = """
codemill quantize Qwen/Qwen3-Coder-30B-A3B-Instruct coder-int4
codemill quantize path/to/model model-int8 --bits 8 --group-size 64
codemill quantize path/to/model model-int4 --head-bits 8 --calibrate code.jsonl
codemill quantize random:qwen3-0.6b random-int4 --asymmetric --head-bits 8
"""
CALIBRATION_WINDOW, CALIBRATION_TOKENS = 512, 32_768


def register(app: typer.Typer) -> None:
    add_verb(app, quantize, EXAMPLES)


def quantize(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Directory, hub id or random:PRESET; embedded: the embedded model.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The new directory; it must not exist yet.")],
    bits: Annotated[int, typer.Option(help="Bits of a weight: 4 or 8.")] = 4,
    group_size: Annotated[int, typer.Option(help="Weights of a row that share a scale: 32, 64, ... 512.")] = 32,
    symmetric: Annotated[
        bool, typer.Option("--symmetric/--asymmetric", help="A scale only, or a scale and a minimum for each group.")
    ] = True,
    head_bits: Annotated[
        int | None, typer.Option(help="Bits of embedding and head; default: those of all.", show_default=False)
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Text or JSON Lines like what the model is for: better, slower.")
    ] = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Pack a model's weights in 4 or 8 bits; tokenizer and template come along."""
    from codemill.config import QuantizationConfig
    from codemill.models.quantize_directory import quantize_model

    options.set_threads(threads)
    wanted = QuantizationConfig(bits, group_size, symmetric, head_bits)
    spec = None if source == "embedded" else source
    batches = [] if calibrate is None else _calibration(spec, calibrate.expanduser(), seed or 0)
    done = quantize_model(spec, target, wanted, seed=seed or 0, calibration=batches)
    if as_json:
        print_json(_as_object(done))
    else:
        print(_summary(done))


def _calibration(spec: str | None, path: Path, seed: int) -> "list[Tensor]":
    """Token ids of windows of the text, drawn by the seed."""
    import torch

    from codemill.chat import Tokenizer
    from codemill.data.texts import read_texts, sample_windows

    tokenizer = Tokenizer.load(spec)
    documents = [tokenizer.encode(text) for text in read_texts(path)]
    windows = sample_windows(documents, CALIBRATION_WINDOW, CALIBRATION_TOKENS, seed)
    if not windows:
        raise UsageError(f"{path} holds a single token: give some 30,000")
    return [torch.tensor([window]) for window in windows]


def _as_object(done: "Quantized") -> dict[str, object]:
    return {
        "directory": str(done.directory),
        "quantization": str(done.quantization),
        "source_bytes": done.source_bytes,
        "bytes": done.num_bytes,
    }


def _summary(done: "Quantized") -> str:
    before = f" (before: {_megabytes(done.source_bytes)})" if done.source_bytes else ""
    return f"{done.directory}: {done.quantization}, {_megabytes(done.num_bytes)} of weights{before}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
