"""Attention of few new tokens over the paged KV cache: the C++ kernel beside its PyTorch form.

    python benchmarks/paged_attention_speed.py [--threads 2] [--rounds 7] [--output benchmarks/results/NAME.json]

The shapes are Qwen3-0.6B's: 16 query heads, 8 key/value heads, head_dim 128. A round goes through the caches of several
layers, so that a cache is out of the processor's caches when its turn comes again. The two forms and a plain read of
the same memory take turns, and medians are reported. The roofline is the time of that plain read (a sum, by PyTorch).
Blocks lie side by side, which is the best case for PyTorch: it copies scattered ones. PyTorch's threads sleep between
operations (OMP_WAIT_POLICY=passive): where another program runs, they otherwise wait for each other for milliseconds.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import torch
from torch import Tensor
from transformers_speed import processor

from codemill.config import ModelConfig
from codemill.kernels import paged_attention
from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.paged_attention import PagedAttention
from codemill.kernels.segments import Segment, Segments
from codemill.models.cache import Cache, KVCache
from codemill.presets import PRESETS

BLOCK_SIZE = 32
CACHE_BYTES = 1 << 28
# (sequences, keys of each, new tokens of each)
CASES = [(1, 64, 1), (1, 512, 1), (1, 2048, 1), (1, 8192, 1), (8, 64, 1), (8, 512, 1), (8, 2048, 1), (1, 2048, 5)]


@dataclass(frozen=True)
class Inputs:
    """One case: the caches of several layers and the query [N, H, K] that all of them get."""

    layers: list[KVCache]
    query: Tensor
    segments: Segments

    @property
    def bytes_read(self) -> int:
        """Keys and values of one layer."""
        return self.layers[0].key.nbytes + self.layers[0].value.nbytes

    def run(self) -> None:
        attention, count = PagedAttention(self.segments), len(self.query)
        for layer in self.layers:
            attention.attend(self.query, layer.key[:count], layer.value[:count], layer.key, layer.value)

    def run_in_pytorch(self) -> None:
        with mock.patch.object(paged_attention, "load_cpu_library", return_value=None):
            self.run()

    def read(self) -> None:
        for layer in self.layers:
            layer.key.view(torch.float32).sum()
            layer.value.view(torch.float32).sum()


def draw(config: ModelConfig, num_sequences: int, num_keys: int, num_new: int, dtype: torch.dtype) -> Inputs:
    num_blocks = num_keys // BLOCK_SIZE
    cache = Cache.allocate_blocks(config, num_sequences * num_blocks, BLOCK_SIZE, 1, dtype)
    layer_bytes = cache.kv_caches[0].key.nbytes * 2
    layers = cache.kv_caches[: max(2, CACHE_BYTES // layer_bytes)]
    for layer in layers:
        layer.key.normal_()
        layer.value.normal_()
    tables = [tuple(range(i * num_blocks, (i + 1) * num_blocks)) for i in range(num_sequences)]
    each = tuple(Segment(num_new, num_keys - num_new, table) for table in tables)
    query = torch.randn(num_sequences * num_new, config.num_attention_heads, config.head_dim).to(dtype)
    return Inputs(layers, query, Segments(each, BLOCK_SIZE, torch.device("cpu")))


def measure(inputs: Inputs, rounds: int) -> dict[str, float]:
    """Seconds a layer, medians over the rounds. Short cases are repeated within a round."""
    forms = {"codemill": inputs.run, "pytorch": inputs.run_in_pytorch, "read": inputs.read}
    repeats = max(1, (1 << 27) // (inputs.bytes_read * len(inputs.layers)))
    series: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, form in forms.items():
            seconds = timed(form, repeats) / (repeats * len(inputs.layers))
            if number > 0:  # the first round warms up
                series[name].append(seconds)
    return {name: statistics.median(values) for name, values in series.items()}


def timed(work: Callable[[], None], repeats: int) -> float:
    work()  # leaves the threads of the other form behind
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return time.perf_counter() - start


def figure(case: tuple[int, int, int], inputs: Inputs, rounds: int) -> dict[str, Any]:
    seconds = measure(inputs, rounds)
    bandwidth = inputs.bytes_read / seconds["read"]
    return {
        "sequences": case[0],
        "keys": case[1],
        "new_tokens": case[2],
        "unit": "us a layer",
        "codemill": seconds["codemill"] * 1e6,
        "pytorch": seconds["pytorch"] * 1e6,
        "ratio": seconds["pytorch"] / seconds["codemill"],
        "roofline": seconds["read"] * 1e6,
        "read_bandwidth": bandwidth,
        "fraction": seconds["read"] / seconds["codemill"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if load_cpu_library() is None:
        raise SystemExit("the package was installed without its CPU kernels; install a C++ compiler and run pip again")
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {
        "machine": {"processor": processor(), "threads": arguments.threads},
        "versions": {name: version(name) for name in ("codemill", "torch")},
        "command": " ".join(["python", "benchmarks/paged_attention_speed.py", *sys.argv[1:]]),
        "rounds": arguments.rounds,
        "figures": {},
    }
    config = PRESETS["qwen3-0.6b"].config
    for dtype in ("bfloat16", "float32"):
        result["figures"][dtype] = rows = []
        for case in CASES:
            with torch.inference_mode():
                rows.append(figure(case, draw(config, *case, getattr(torch, dtype)), arguments.rounds))
            print(dtype, json.dumps(rows[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
