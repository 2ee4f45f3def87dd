"""Codemill on a CPU beside llama.cpp and OpenVINO, and how far the targets are reached.

    python benchmarks/cpu_speed.py [--parts int4,int8,...] [--peers-python PATH] [--peers-folder PATH] [--threads 2]
        [--rounds 3] [--output benchmarks/results/cpu_speed.json]

Each part is a `codemill bench` of random weights of a true shape: engines take turns, medians count, and of each peer
the best setting. Peers that are not installed, or crash, are left out. The parts:

    int4, int8, bf16     qwen3-0.6b shape: prefill, decode, batch 8
    load-int4, ...       the same shape from a directory, as a user has it: loading, and memory at a context of 4k
    moe-8-layers         30B-A3B shape with 8 of its 48 layers, 4 bits: 3 GB for each engine
    hybrid               Coder-Next shape with 8 of its 48 layers, 4 bits: 8 GB for each engine
    moe, moe-4k          30B-A3B shape, 4 bits: 18 GB of memory for one engine after the other, and 18 GB of disk

The last four are not among the default parts. Peers' models are written to --peers-folder, or to a temporary folder
(TMPDIR says where). The output is written after each part; parts of an earlier run that are not measured again stay.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from codemill.bench.engines import ENGINES, PEERS
from codemill.bench.run import Bench, BenchRequest
from codemill.bench.workload import Workload
from codemill.errors import CodemillError, UsageError
from codemill.spec import EMBEDDED

SMALL, MOE = "random:qwen3-0.6b", "random:qwen3-coder-30b-a3b"
HYBRID = "random:qwen3-coder-next:num_hidden_layers=8"
QUICK = Workload((64,), (0, 64), (1, 2), 8, (64,))
USUAL = Workload((512, 2048), (0, 512), (1, 8), 32, (512,))
SINGLE = Workload((512,), (0, 512), (1,), 32)
LONG = Workload((4064,), (), (1,), 32)
FASTEST = ("llama.cpp", "openvino")


@dataclass(frozen=True)
class Part:
    """What one `codemill bench` measures. stored: of weights in a directory; rounds: instead of --rounds."""

    spec: str
    quantization: str | None
    workload: Workload
    peers: tuple[str, ...] = FASTEST
    stored: bool = False
    rounds: int | None = None


PARTS = {
    "int4": Part(SMALL, "int4", USUAL),
    "int8": Part(SMALL, "int8", USUAL),
    "bf16": Part(SMALL, None, USUAL),
    "load-int4": Part(SMALL, "int4", LONG, stored=True, rounds=1),
    "load-int8": Part(SMALL, "int8", LONG, stored=True, rounds=1),
    "load-bf16": Part(SMALL, None, LONG, stored=True, rounds=1),
    "moe-8-layers": Part(f"{MOE}:num_hidden_layers=8", "int4", SINGLE, ("llama.cpp",)),
    "hybrid": Part(HYBRID, "int4", SINGLE, ("llama.cpp",)),
    "moe": Part(MOE, "int4", SINGLE, ("llama.cpp",)),
    "moe-4k": Part(MOE, "int4", LONG, ("llama.cpp",), rounds=1),
}
LARGE = ("moe-8-layers", "hybrid", "moe", "moe-4k")
DEFAULT_PARTS = tuple(name for name in PARTS if name not in LARGE)
Target = tuple[str, str, float, Callable[[dict[str, Any]], float | None]]


def figure(part: dict[str, Any], name: str) -> dict[str, Any]:
    """A figure of a part; an empty one if it was not measured."""
    return next((each for each in part.get("figures", ()) if each["name"] == name), {})


def over(name: str, *peers: str) -> Callable[[dict[str, Any]], float | None]:
    """How many times the best of `peers` we are."""

    def ratio(part: dict[str, Any]) -> float | None:
        found = figure(part, name)
        ratios = [found["peers"][peer]["ratio"] for peer in peers if peer in found.get("peers", {})]
        return min(ratios, default=None)

    return ratio


def of(name: str, key: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda part: figure(part, name).get(key)


# Part, what, what it should be at least (at most where it is of memory), and how it follows from the figures.
TARGETS: list[Target] = [
    *(
        (part, "decode after 512, over the best peer", least, over("decode after 512", *FASTEST))
        for part, least in (("int4", 1.8), ("int8", 1.8), ("bf16", 1.3))
    ),
    *(
        (part, f"decode after {depth}, share of the roofline", least, of(f"decode after {depth}", "fraction"))
        for part in ("int4", "int8", "bf16")
        for depth, least in ((0, 0.85), (512, 0.7))
    ),
    *(
        (part, f"prefill {length}, over the best peer", 2.0, over(f"prefill {length}", *FASTEST))
        for part in ("int4", "int8")
        for length in (512, 2048)
    ),
    *(
        (part, "batch 8, over llama.cpp", 2.5, over("decode after 512, batch 8", "llama.cpp"))
        for part in ("int4", "int8", "bf16")
    ),
    *(
        (f"load-{part}", "peak memory over weights, at most", 1.15, of("peak memory over weights", "value"))
        for part in ("int4", "int8", "bf16")
    ),
    ("moe", "decode after 512, over llama.cpp", 1.8, over("decode after 512", "llama.cpp")),
    ("moe-8-layers", "decode after 512, over llama.cpp", 1.8, over("decode after 512", "llama.cpp")),
    ("hybrid", "decode after 512, over llama.cpp", 1.5, over("decode after 512", "llama.cpp")),
    *(
        (part, f"decode after {depth}, share of the roofline", least, of(f"decode after {depth}", "fraction"))
        for part in ("moe", "moe-8-layers", "hybrid")
        for depth, least in ((0, 0.85), (512, 0.7))
    ),
    ("moe-4k", "peak memory in bytes, at most", 19e9, of("peak memory", "value")),
    ("moe-4k", "peak memory over weights, at most", 1.15, of("peak memory over weights", "value")),
]


def judge(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target that was measured, with what was reached."""
    rows = []
    for name, what, target, reach in TARGETS:
        reached = reach(parts.get(name, {}))
        if reached is not None:
            met = reached <= target if "at most" in what else reached >= target
            rows.append({"part": name, "what": what, "target": target, "reached": reached, "met": met})
    return rows


def print_targets(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        verdict = "met" if row["met"] else "missed"
        print(f"{row['part']:13} {row['what']:45} {row['reached']:12,.2f}, target {row['target']:,.2f}: {verdict}")


def installed(peer: str, python: str) -> str | None:
    """The version of a peer, None if that Python does not have it."""
    names = {"llama.cpp": "llama-cpp-python", "openvino": "openvino-genai", "transformers": "transformers"}
    script = f"import {ENGINES[peer].package}, importlib.metadata as m; print(m.version({names[peer]!r}))"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 else None


def versions(peers: dict[str, str]) -> dict[str, str]:
    found = dict(peers)
    for package in ("codemill", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def store(part: Part, spec: str, folder: Path) -> str:
    """Write the part's model to a directory, unless it lies there already -> the directory."""
    from codemill.models import load_model, save_pretrained
    from codemill.models.quantize_directory import quantize_model

    shape = re.sub(r"[^a-z0-9.]+", "-", spec.lower())
    target = folder / f"{shape}-{part.quantization or 'bf16'}-codemill"
    if not target.exists():
        if part.quantization is None:
            save_pretrained(load_model(spec), target)
        else:
            quantize_model(spec, target, part.quantization)
        if part.quantization is None:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(EMBEDDED / file, target)
    return str(target)


def request(part: Part, peers: dict[str, str], options: argparse.Namespace, folder: Path) -> BenchRequest:
    spec = options.spec or part.spec
    return BenchRequest(
        spec=store(part, spec, folder) if part.stored else spec,
        quantization=part.quantization,
        dtype="auto" if part.quantization else "bfloat16",
        num_threads=options.threads,
        workload=QUICK if options.quick else part.workload,
        rounds=part.rounds or options.rounds,
        peers=[peer for peer in part.peers if peer in peers],
        peers_python=options.peers_python,
        folder=folder,
    )


def measure(part: Part, peers: dict[str, str], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures of a part, or why there are none."""
    start = time.perf_counter()
    try:
        bench = Bench(request(part, peers, options, folder))
        bench.run(lambda text: print(f"  {text}", file=sys.stderr, flush=True))
    except (CodemillError, UsageError) as error:
        return {"error": str(error)}
    for name, failures in bench.failures.items():
        for text in failures:
            print(f"  {name} failed: {text}", file=sys.stderr)
    found = bench.to_json()
    found["model"]["spec"] = options.spec or part.spec
    return {**found, "stored": part.stored, "measured_in_seconds": round(time.perf_counter() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(DEFAULT_PARTS), help=f"all, or among {', '.join(PARTS)}")
    parser.add_argument("--compare", default=",".join(FASTEST), help="the peers")
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--peers-folder", type=Path, help="keep the peers' models here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spec", help="another model than the parts have, such as a smaller one")
    parser.add_argument("--quick", action="store_true", help="a tiny workload, to see that it works")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    names = list(PARTS) if options.parts == "all" else options.parts.split(",")
    unknown = set(names) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {unknown.pop()}: choose among {', '.join(PARTS)}")
    peers = {peer: installed(peer, options.peers_python) for peer in options.compare.split(",") if peer in PEERS}
    found = {peer: number for peer, number in peers.items() if number is not None}
    parts: dict[str, Any] = {}
    if options.output is not None and options.output.exists():
        parts = json.loads(options.output.read_text())["parts"]
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            print(name, file=sys.stderr, flush=True)
            measured = measure(PARTS[name], found, options, options.peers_folder or Path(temporary))
            how = f"--parts {name} --compare {options.compare} --threads {options.threads} --rounds {options.rounds}"
            measured |= {"command": f"python benchmarks/cpu_speed.py {how}", "versions": versions(found)}
            if "error" not in measured or name not in parts:  # figures of an earlier run are better than none
                parts[name] = measured
            result = {"targets": judge(parts), "parts": parts}
            if options.output is not None:
                options.output.write_text(json.dumps(result, indent=1) + "\n")
    print_targets(result["targets"])


if __name__ == "__main__":
    main()
