"""Attention over the paged KV cache: the C++ kernel beside its PyTorch form, for decode and for prompts.

    python benchmarks/paged_attention_speed.py [--threads 2] [--rounds 7] [--output benchmarks/results/NAME.json]

Shapes are (query heads, key/value heads, head_dim); the first is Qwen3-0.6B's, the second Qwen3-Coder-30B-A3B's.
Queries are fp32, the cache is bf16 or int8. A round goes through the caches of several layers, so that a cache is out
of the processor's caches when its turn comes again. The forms and a plain read of the same memory take turns, and
medians are reported. The roofline of decode is the time of that plain read (a sum, by PyTorch). `tiles` is the kernel
with AMX, where there is AMX. Blocks lie side by side, which is the best case for PyTorch: it copies scattered ones.
PyTorch's threads sleep between operations (OMP_WAIT_POLICY=passive): where another program runs, they otherwise wait
for each other for milliseconds.
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
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import torch
from torch import Tensor
from transformers_speed import processor

from codemill.kernels import paged_attention
from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.kv_cache import KVCache, kv_vector_bytes
from codemill.kernels.paged_attention import PagedAttention
from codemill.kernels.segments import Segment, Segments

BLOCK_SIZE = 32
CACHE_BYTES = 1 << 28
SHAPES = [(16, 8, 128), (32, 4, 128), (16, 2, 256)]
# (sequences, keys of each, new tokens of each)
DECODE = [(1, 32, 1), (1, 512, 1), (1, 2048, 1), (1, 8192, 1), (8, 512, 1), (8, 2048, 1), (1, 2048, 5)]
PROMPTS = [(1, 512, 512), (1, 2048, 2048)]
SLOW = 256  # new tokens, from which on a case is computed over two layers only


@dataclass(frozen=True)
class Inputs:
    """One case: the caches of several layers and the query [N, H, K] that all of them get."""

    layers: list[KVCache]
    query: Tensor
    segments: Segments

    @property
    def bytes_read(self) -> int:
        """Keys and values of one layer, with the scales of int8."""
        return sum(tensor.nbytes for tensor in self.layers[0].tensors.values())

    @property
    def operations(self) -> int:
        """Of one layer: two for each product of a visible key, or value, with a query head."""
        heads, head_dim = self.query.shape[1:]
        each = self.segments.each
        return 4 * heads * head_dim * sum(sum(range(s.num_past + 1, s.length + 1)) for s in each)

    def run(self, may_use_tiles: bool = False) -> None:
        attention = PagedAttention(self.segments, may_use_tiles)
        nothing = self.query[:0]  # new keys and values are read from a cache of another dtype
        for layer in self.layers:
            attention.attend(self.query, nothing, nothing, layer)

    def run_with_tiles(self) -> None:
        self.run(may_use_tiles=True)

    def run_in_pytorch(self) -> None:
        with mock.patch.object(paged_attention, "load_cpu_library", return_value=None):
            self.run()

    def read(self) -> None:
        for layer in self.layers:
            layer.key.view(torch.float32).sum()
            layer.value.view(torch.float32).sum()


def draw(shape: tuple[int, int, int], case: tuple[int, int, int], dtype: torch.dtype) -> Inputs:
    (num_heads, num_kv_heads, head_dim), (num_sequences, num_keys, num_new) = shape, case
    num_slots, num_blocks = num_sequences * num_keys, num_keys // BLOCK_SIZE
    layer_bytes = 2 * num_slots * num_kv_heads * kv_vector_bytes(head_dim, dtype)
    num_layers = 2 if num_new >= SLOW else max(2, min(28, CACHE_BYTES // layer_bytes))
    layers = [draw_layer((num_slots, num_kv_heads, head_dim), dtype) for _ in range(num_layers)]
    tables = [tuple(range(i * num_blocks, (i + 1) * num_blocks)) for i in range(num_sequences)]
    each = tuple(Segment(num_new, num_keys - num_new, table) for table in tables)
    query = torch.randn(num_sequences * num_new, num_heads, head_dim)
    return Inputs(layers, query, Segments(each, BLOCK_SIZE, torch.device("cpu")))


def draw_layer(shape: tuple[int, int, int], dtype: torch.dtype) -> KVCache:
    scales = [torch.zeros(shape[:2]) for _ in range(2)] if dtype == torch.int8 else []
    layer = KVCache(*(torch.zeros(shape, dtype=dtype) for _ in range(2)), *scales)
    layer.write(torch.randn(shape), torch.randn(shape), torch.arange(shape[0]))
    return layer


def measure(inputs: Inputs, rounds: int) -> dict[str, float]:
    """Seconds a layer, medians over the rounds. Short cases are repeated within a round."""
    is_prompt = len(inputs.query) >= SLOW
    forms = {"codemill": inputs.run, "pytorch": inputs.run_in_pytorch, "read": inputs.read}
    if is_prompt:
        forms["tiles"] = inputs.run_with_tiles
    repeats = 1 if is_prompt else max(1, (1 << 26) // (inputs.bytes_read * len(inputs.layers)))
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


def figure(shape: tuple[int, int, int], case: tuple[int, int, int], inputs: Inputs, rounds: int) -> dict[str, Any]:
    seconds = measure(inputs, rounds)
    found = {
        "shape": shape,
        "sequences": case[0],
        "keys": case[1],
        "new_tokens": case[2],
        "unit": "us a layer",
        "codemill": seconds["codemill"] * 1e6,
        "pytorch": seconds["pytorch"] * 1e6,
        "ratio": seconds["pytorch"] / seconds["codemill"],
        "roofline": seconds["read"] * 1e6,
        "read_bandwidth": inputs.bytes_read / seconds["read"],
        "fraction": seconds["read"] / seconds["codemill"],
        "gflops": inputs.operations / seconds["codemill"] / 1e9,
    }
    if "tiles" in seconds:
        found |= {"tiles": seconds["tiles"] * 1e6, "tiles_gflops": inputs.operations / seconds["tiles"] / 1e9}
    return found


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
    for dtype in ("bfloat16", "int8"):
        result["figures"][dtype] = rows = []
        for shape, case in product(SHAPES, DECODE + PROMPTS):
            with torch.inference_mode():
                rows.append(figure(shape, case, draw(shape, case, getattr(torch, dtype)), arguments.rounds))
            print(dtype, json.dumps(rows[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
