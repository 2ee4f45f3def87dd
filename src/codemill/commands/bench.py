"""`codemill bench`: speed and memory of a model on this machine, beside what the machine allows."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from codemill.commands import add_verb, options, print_json
from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill.bench.figures import Figure
    from codemill.bench.machine import Machine
    from codemill.bench.run import Bench

EXAMPLES = """
codemill bench
codemill bench random:qwen3-0.6b --quantization int4
codemill bench random:qwen3-0.6b --prompt-lengths 512 --decode-after 0,512,4096 --batch 1 --json
codemill bench random:qwen3-0.6b --compare llama.cpp,transformers --peers-python peers/bin/python
"""
_UNITS = {"bytes": (1e6, "MB", 0), "tokens/s": (1, "tokens/s", 1), "s": (1, "s", 2), "ratio": (1, "", 2)}


def register(app: typer.Typer) -> None:
    add_verb(app, bench, EXAMPLES)


def bench(
    spec: Annotated[
        str | None, typer.Argument(metavar="SPEC", help="Directory, hub id or random:PRESET; default: the embedded.")
    ] = None,
    quantization: Annotated[
        Literal["int4", "int8"] | None, typer.Option(help="Pack the weights; default: as they are.")
    ] = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    prompt_lengths: Annotated[str, typer.Option(metavar="N,...", help="Prompts, in tokens.")] = "512,2048",
    decode_after: Annotated[str, typer.Option(metavar="N,...", help="Context before decode, in tokens.")] = "0,512",
    batch: Annotated[str, typer.Option(metavar="N,...", help="Sequences that decode together.")] = "1,8",
    decode_tokens: Annotated[int, typer.Option(help="Tokens to decode in a run.")] = 32,
    rounds: Annotated[int, typer.Option(help="Runs of each kind; the median counts.")] = 5,
    compare: Annotated[
        str | None,
        typer.Option(metavar="PEER,...", help="Peers to take turns with: llama.cpp, openvino, transformers."),
    ] = None,
    peers_python: Annotated[
        str | None, typer.Option(metavar="PATH", help="The Python that has the peers; default: this one.")
    ] = None,
    peers_folder: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Keep the peers' models here; default: a temporary folder.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure decode, prefill, batches, first token and memory of a model, beside the machine's limits."""
    import tempfile

    from codemill.bench.run import Bench, BenchRequest
    from codemill.bench.workload import Workload
    from codemill.kernels.thread_count import default_threads

    workload = Workload(
        _numbers("prompt-lengths", prompt_lengths),
        _numbers("decode-after", decode_after),
        _numbers("batch", batch),
        decode_tokens,
    )
    with tempfile.TemporaryDirectory(prefix="codemill-bench-") as temporary:
        request = BenchRequest(
            spec=spec,
            quantization=quantization,
            dtype=dtype,
            num_threads=threads or default_threads().count,
            workload=workload,
            rounds=rounds,
            peers=[name.strip() for name in compare.split(",")] if compare else [],
            peers_python=peers_python,
            folder=(peers_folder or Path(temporary)).expanduser(),
        )
        _run(Bench(request), as_json)


def _run(bench: "Bench", as_json: bool) -> None:
    """Measure and print; after Ctrl-C print what there is."""
    try:
        with _progress() as note:
            bench.run(note)
    except KeyboardInterrupt:
        print("[interrupted: these are the medians so far]", file=sys.stderr)
        _print(bench, as_json)
        raise
    _print(bench, as_json)


def _print(bench: "Bench", as_json: bool) -> None:
    for text in bench.left_out:
        print(f"[{text} is left out: the model's context is too short]", file=sys.stderr)
    for name, failures in bench.failures.items():
        for text in failures:
            print(f"[{name} failed: {text}]", file=sys.stderr)
    if as_json:
        print_json(bench.to_json())
    elif bench.machine is not None:
        print(as_text(bench, bench.machine))


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is going on, on a terminal."""
    from rich.console import Console

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("") as status:
        yield lambda text: status.update(text)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """The numbers of a list such as 512,2048, without repetitions; none for an empty one."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",") if part.strip()))
    except ValueError:
        raise UsageError(f"--{name} {text}: give whole numbers, as in 512,2048") from None


def as_text(bench: "Bench", machine: "Machine") -> str:
    """The model, the machine and a table of figures."""
    from codemill.bench.figures import names_in_order

    figures = bench.figures()
    peers = names_in_order(figures)
    header = ["FIGURE", "VALUE", "", "LIMIT", "REACHED"]
    rows = [[*header, *(word for name in peers for word in (name.upper(), "WE ARE"))]]
    rows += [_row(figure, peers) for figure in figures]
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join([row[0].ljust(sizes[0]), *map(str.rjust, row[1:], sizes[1:])]).rstrip() for row in rows]
    return "\n".join([*_title(bench, machine), "", *table, *_settings(figures, peers)])


def _title(bench: "Bench", machine: "Machine") -> list[str]:
    step = bench.roofline.touched_weight_bytes(1)
    cached, plain = machine.read_limit(step), machine.bandwidth[max(machine.bandwidth)]
    kind = bench.roofline.weights.instruction
    return [
        f"{bench.name}, {bench.form}: "
        f"{bench.roofline.weight_bytes / 1e6:,.1f} MB of weights, {step / 1e6:,.1f} MB of them read for a token",
        f"{machine.processor}, {machine.num_threads} of {machine.num_cores} cores: reads {cached / 1e9:.1f} GB/s "
        f"over so many bytes ({plain / 1e9:.1f} over {max(machine.bandwidth) / 1e6:,.0f} MB), "
        f"computes {machine.compute_limit(kind) / 1e9:,.0f} G{kind} operations/s; "
        f"load average {machine.load_average:.1f}",
    ]


def _row(figure: "Figure", peers: Sequence[str]) -> list[str]:
    scale, unit, digits = _UNITS[figure.unit]

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value / scale:,.{digits}f}"

    fraction = "-" if figure.fraction is None else f"{figure.fraction:.0%}"
    row = [figure.name, cell(figure.value), unit, cell(figure.roofline), fraction]
    for name in peers:
        peer = figure.peers.get(name)
        row += ["-", "-"] if peer is None else [cell(peer.value), f"{peer.ratio:.2f} x"]
    return row


def _settings(figures: Sequence["Figure"], peers: Sequence[str]) -> list[str]:
    """How each peer ran where it was fastest."""
    lines = [""] if peers else []
    for name in peers:
        used = dict.fromkeys(figure.peers[name].setting for figure in figures if name in figure.peers)
        lines.append(f"{name}: {'; '.join(filter(None, used))}")
    return lines
