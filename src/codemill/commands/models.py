"""`codemill models`: the presets, how large they are, and what fits this machine."""

import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codemill.commands import add_verb, print_json

if TYPE_CHECKING:
    from codemill.footprint import Footprint
    from codemill.presets import Preset

EXAMPLES = """
codemill models
codemill models qwen3-coder-30b-a3b
codemill models --json
"""
WIDE = 120  # terminals from this width on also see the hub ids
HEADER = (
    ("MODEL", "TOTAL", "ACTIVE", "CONTEXT", "FP32", "BF16", "8BIT", "INT4", "KV", "STATE", "FITS"),
    ("", "B", "B", "tokens", "GB", "GB", "GB", "GB", "MB/1k", "MB", ""),
)


def register(app: typer.Typer) -> None:
    add_verb(app, models, EXAMPLES)


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One preset, by its name or hub id.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of objects, in bytes.")] = False,
) -> None:
    """The models: size, memory, and what fits this machine."""
    from codemill.footprint import available_memory, measure
    from codemill.presets import PRESETS, find_preset

    chosen = [find_preset(name)] if name is not None else list(PRESETS.values())
    measured = [(preset, measure(preset.config)) for preset in chosen]
    available = available_memory()
    if as_json:
        print_json([_as_object(preset, footprint, available) for preset, footprint in measured])
    elif name is not None:
        print(_details(*measured[0], available))
    else:
        print(_table(measured, available, shutil.get_terminal_size().columns))


def _as_object(preset: "Preset", footprint: "Footprint", available: int) -> dict[str, Any]:
    return {
        "name": preset.name,
        "hub_id": preset.hub_id,
        "parameters": footprint.parameters,
        "active_parameters": footprint.active_parameters,
        "context": preset.config.max_position_embeddings,
        "memory": dict(footprint.memory),
        "kv_bytes_per_1k_tokens": footprint.kv_bytes_per_1k_tokens,
        "state_bytes": footprint.state_bytes,
        "fits": list(footprint.fits(available)),
    }


def _table(measured: Sequence[tuple["Preset", "Footprint"]], available: int, width: int) -> str:
    rows = [*HEADER, *(_row(preset, footprint, available) for preset, footprint in measured)]
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    hub_ids = ["HUB ID", "", *(preset.hub_id for preset, _ in measured)] if width >= WIDE else [""] * len(rows)
    lines = [f"{_align(row, sizes)}  {hub_id}".rstrip() for row, hub_id in zip(rows, hub_ids, strict=True)]
    return "\n".join([*lines, "", *textwrap.wrap(_legend(available), min(width, 100))])


def _align(row: Sequence[str], sizes: Sequence[int]) -> str:
    """The first column and the last to the left, the figures between them to the right."""
    cells = [cell.rjust(size) for cell, size in zip(row, sizes, strict=True)]
    return " ".join([row[0].ljust(sizes[0]), *cells[1:-1], row[-1].ljust(sizes[-1])])


def _row(preset: "Preset", footprint: "Footprint", available: int) -> tuple[str, ...]:
    memory = footprint.memory
    return (
        preset.name,
        _billions(footprint.parameters),
        _billions(footprint.active_parameters),
        f"{preset.config.max_position_embeddings:,}",
        *(_gigabytes(memory[precision]) for precision in ("fp32", "bf16", "int8", "int4")),
        f"{footprint.kv_bytes_per_1k_tokens / 1e6:.0f}",
        f"{footprint.state_bytes / 1e6:.1f}" if footprint.state_bytes else "-",
        next(iter(footprint.fits(available)), "-"),
    )


def _billions(count: int) -> str:
    value = count / 1e9
    return f"{value:.{1 if value >= 100 else 2 if value >= 10 else 3}f}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.0f}" if size >= 100e9 else f"{size / 1e9:.1f}"


def _legend(available: int) -> str:
    from codemill.footprint import FIT_TOKENS, RUNTIME_BYTES

    return (
        f"This machine has {available / 1e9:.1f} GB of memory available. FITS is the most exact precision at which it "
        f"holds the weights, a context of {FIT_TOKENS:,} tokens and {RUNTIME_BYTES / 1e9:.1f} GB for the program. "
        "KV is the bf16 cache of 1,000 tokens; STATE the fp32 state of one sequence of any length. "
        "GB and MB are 10^9 and 10^6 bytes."
    )


def _details(preset: "Preset", footprint: "Footprint", available: int) -> str:
    config, memory = preset.config, footprint.memory
    facts = {
        "model": f"{preset.name} ({preset.hub_id})",
        "parameters": f"{footprint.parameters:,}",
        "active per token": f"{footprint.active_parameters:,}",
        "context": f"{config.max_position_embeddings:,} tokens",
        "decoder layers": _layers(preset),
        **{f"weights in {name}": f"{size / 1e9:,.2f} GB" for name, size in memory.items()},
        "KV cache, bf16": f"{footprint.kv_bytes_per_1k_tokens / 1e6:,.1f} MB for 1,000 tokens",
        "state, fp32": f"{footprint.recurrent_state_bytes / 1e6:,.1f} MB recurrent + "
        f"{footprint.conv_state_bytes / 1e6:,.1f} MB conv for each sequence",
        "fits this machine": ", ".join(footprint.fits(available)) or "at no precision",
        "memory available": f"{available / 1e9:,.1f} GB",
    }
    return "\n".join(f"{name:18} {value}" for name, value in facts.items())


def _layers(preset: "Preset") -> str:
    config = preset.config
    num_full = config.layer_types.count("full_attention")
    kinds = f"{config.num_hidden_layers} ({num_full} full attention"
    kinds += f", {config.num_hidden_layers - num_full} Gated DeltaNet)" if config.is_hybrid else ")"
    if config.moe is None:
        return kinds
    return f"{kinds}, {config.moe.num_experts_per_tok} of {config.moe.num_experts} experts per token"
