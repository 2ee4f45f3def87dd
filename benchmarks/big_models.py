"""Models of 30 billion parameters and of more than memory holds, from `codemill quantize random:PRESET`.

    python benchmarks/big_models.py DIRECTORY [--preset qwen3-coder-30b-a3b] [--output benchmarks/results/NAME.json]

Writes the model there if it is not there yet. Then each run is a process of its own: it loads the model, decodes some
tokens several times over, and says how long it took and what it read from disk. `cold` begins with none of the files
in the page cache, `warm` with what the run before left there. `faults` is as `cold`, but experts are read by page
faults alone; `requests` is as `warm`, but experts are asked for even if the model fits. `packed` draws the weights in
memory, as `codemill bench random:PRESET --quantization int4` does.

`trace` reads experts without computing anything, as routers of two kinds would choose them: all experts alike, as the
random weights of a benchmark do, and by Zipf's law. It compares how often the page cache has them with what the best
known policies would reach with as much memory.
"""

import argparse
import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers_speed import processor

from codemill.bench.engines.ours import OurEngine, held_weights
from codemill.config import ModelConfig
from codemill.engine.llm import LLM
from codemill.engine.sampling_params import SamplingParams
from codemill.models import load_model
from codemill.models.checkpoint import Checkpoint
from codemill.models.quantize_directory import quantize_model

RUNS = ("packed", "cold", "warm", "faults", "requests", "trace")
PROMPT_TOKENS, CONTEXT = 16, 4096
PAGE = mmap.PAGESIZE
TRACES = {"uniform": (0.0, 160), "zipf": (1.0, 400)}  # exponent and number of tokens


def drop_from_cache(directory: Path) -> None:
    """Has the page cache forget the weights."""
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def status(key: str) -> int:
    """Bytes of a line of /proc/self/status: VmHWM is the peak of what was resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def bytes_read() -> int:
    """From disk by this process, by readahead too."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def expert_bytes_per_token(config: ModelConfig, experts: int) -> int:
    """Of `experts` bytes, those that the router of each layer chooses for one token."""
    assert config.moe is not None
    return experts * config.moe.num_experts_per_tok // config.moe.num_experts


def decode(directory: Path, options: argparse.Namespace, experts_on_disk: bool | None) -> dict[str, Any]:
    """Load, and decode several times."""
    start, read = time.perf_counter(), bytes_read()
    llm = LLM(directory, device="cpu", max_model_len=CONTEXT, enable_prefix_cache=False, max_num_seqs=1)
    loaded = time.perf_counter() - start
    if experts_on_disk is not None:
        llm.model.experts_on_disk = experts_on_disk
    engine, prompt = OurEngine(llm), [list(range(1000, 1000 + PROMPT_TOKENS))]
    first = engine.run(prompt, 1, "default").first_seconds
    found: dict[str, Any] = {
        "load_seconds": round(loaded, 2),
        "first_token_seconds": round(first, 2),
        "read_until_then_gb": round((bytes_read() - read) / 1e9, 2),
        "experts_on_disk": llm.model.experts_on_disk,
    }
    touched = expert_bytes_per_token(llm.model.config, held_weights(llm.model)["held"]["experts"])
    num_rounds = 1 if experts_on_disk is False else options.rounds  # page faults take minutes
    found["expert_mb_per_token"] = round(touched / 1e6, 1)
    found["decode"] = [_decode_once(llm, options.tokens, touched, index) for index in range(num_rounds)]
    found["median_tokens_per_s"] = statistics.median(each["tokens_per_s"] for each in found["decode"])
    if experts_on_disk is None:
        before = bytes_read()
        prompt_seconds = engine.run([[(11 * i) % 60_000 for i in range(512)]], 1, "default").first_seconds
        found["prompt_of_512"] = {
            "seconds": round(prompt_seconds, 1),
            "read_gb": round((bytes_read() - before) / 1e9, 1),
        }
    if options.fill_context and experts_on_disk is None:
        filled = engine.run([[(7 * i) % 50_000 for i in range(CONTEXT - 17)]], 17, "default")
        found["prefill_tokens_per_s"] = round((CONTEXT - 17) / filled.first_seconds, 1)
        found["full_context_tokens_per_s"] = round(16 / filled.decode_seconds, 2)
    return {**found, "peak_resident_gb": round(status("VmHWM") / 1e9, 2)}


def _decode_once(llm: LLM, num_tokens: int, touched: int, index: int) -> dict[str, float]:
    """Decode from a prompt of one token, so that each pass reads what one token needs.

    Tokens are sampled: the likeliest of a random model soon repeat, and their experts with them.
    """
    params = SamplingParams(temperature=1.0, max_tokens=num_tokens, ignore_eos=True, seed=index)
    before, start = bytes_read(), time.perf_counter()
    llm.generate([[3000 + 100 * index]], params)
    seconds, read = time.perf_counter() - start, bytes_read() - before
    return {
        "tokens_per_s": round(num_tokens / seconds, 3),
        "read_mb_per_token": round(read / num_tokens / 1e6, 1),
        "read_mb_per_s": round(read / seconds / 1e6, 1),
        "hit_rate": round(1 - read / num_tokens / touched, 3),
    }


def packed(options: argparse.Namespace) -> dict[str, Any]:
    """Draw the weights in memory."""
    start = time.perf_counter()
    model = load_model(f"random:{options.preset}", quantization=options.quantization)
    loaded = time.perf_counter() - start
    held = held_weights(model)["held"]["total"]
    return {
        "load_seconds": round(loaded, 1),
        "weights_gb": round(held / 1e9, 2),
        "peak_resident_gb": round(status("VmHWM") / 1e9, 2),
    }


class ExpertFiles:
    """The mapped files of a model, and where each expert lies in them."""

    def __init__(self, directory: Path) -> None:
        self.moe = ModelConfig.load(directory).moe
        assert self.moe is not None
        checkpoint = Checkpoint.open(directory)
        self._maps: dict[Path, mmap.mmap] = {}
        self._bytes: dict[Path, np.ndarray] = {}
        self._address: dict[Path, int] = {}
        for path in {stored.path for stored in checkpoint.tensors.values()}:
            with path.open("rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._bytes[path] = np.frombuffer(self._maps[path], dtype=np.uint8)
            self._address[path] = self._bytes[path].ctypes.data
        stacks = [stored for name, stored in checkpoint.tensors.items() if ".mlp.experts." in name]
        layers = sorted({stored.name.split(".")[2] for stored in stacks}, key=int)
        self.layers = [[stored for stored in stacks if stored.name.split(".")[2] == layer] for layer in layers]
        self._libc = ctypes.CDLL(None)

    def ranges(self, layer: int, expert: int) -> Iterator[tuple[Path, int, int]]:
        """Whole pages of the expert: file, begin, end."""
        for stored in self.layers[layer]:
            size = (stored.end - stored.begin) // self.moe.num_experts
            begin = stored.begin + expert * size
            yield stored.path, begin // PAGE * PAGE, begin + size

    def resident(self, path: Path, begin: int, end: int) -> int:
        """How many of the pages are in memory."""
        pages = (ctypes.c_ubyte * (-(-(end - begin) // PAGE)))()
        self._libc.mincore(ctypes.c_void_p(self._address[path] + begin), ctypes.c_size_t(end - begin), pages)
        return int(np.count_nonzero(np.frombuffer(pages, dtype=np.uint8) & 1))

    def request(self, path: Path, begin: int, end: int) -> None:
        for at in range(begin, end, 1 << 17):
            self._maps[path].madvise(mmap.MADV_WILLNEED, at, min(1 << 17, end - at))

    def touch(self, path: Path, begin: int, end: int) -> None:
        self._bytes[path][begin:end:PAGE].sum()


def trace(directory: Path, num_tokens: int, zipf: float) -> dict[str, Any]:
    """Read experts as a router would choose them, whose probabilities go down with rank^-zipf.

    Nothing is in memory at first; the second half of the tokens counts.
    """
    drop_from_cache(directory)
    files = ExpertFiles(directory)
    moe, num_layers = files.moe, len(files.layers)
    random = np.random.default_rng(0)
    weights = (1 + np.arange(moe.num_experts)) ** -zipf
    log_weights = [np.log(random.permutation(weights)) for _ in range(num_layers)]
    routes, hits, pages, seconds = [], 0, 0, 0.0
    for token in range(num_tokens):
        # The largest of logarithms with Gumbel noise: drawn without repeats, by weight.
        chosen = [
            np.argsort(-(each + random.gumbel(size=each.size)))[: moe.num_experts_per_tok] for each in log_weights
        ]
        routes.append(chosen)
        counts = token >= num_tokens // 2
        for layer, experts in enumerate(chosen):
            ranges = [each for expert in experts for each in files.ranges(layer, int(expert))]
            if counts:
                hits += sum(files.resident(*each) for each in ranges)
                pages += sum(-(-(end - begin) // PAGE) for _, begin, end in ranges)
            start = time.perf_counter()
            for each in ranges:
                files.request(*each)
            for each in ranges:
                files.touch(*each)
            seconds += (time.perf_counter() - start) * counts
    all_experts = [(layer, expert) for layer in range(num_layers) for expert in range(moe.num_experts)]
    held = sum(files.resident(*each) for key in all_experts for each in files.ranges(*key))
    each_pages = sum(-(-(end - begin) // PAGE) for _, begin, end in files.ranges(0, 0))
    capacity = min(round(held / each_pages), len(all_experts))
    policies = {name: policy(routes, capacity) for name, policy in (("lru", lru), ("decayed_lfu", decayed_lfu))}
    chances = np.concatenate([_chances(each, moe.num_experts_per_tok) for each in log_weights])
    likeliest = np.argsort(-np.concatenate(log_weights), kind="stable")[:capacity]
    return {
        "zipf": zipf,
        "tokens": num_tokens,
        "held_share": round(capacity / len(all_experts), 3),
        "hit_rate": {
            "page_cache": round(hits / pages, 3),
            **policies,
            "the_likeliest_always": round(float(chances[likeliest].sum() / chances.sum()), 3),
        },
        "read_mb_per_s": round((pages - hits) * PAGE / seconds / 1e6, 1),
        "seconds_per_token": round(seconds / (num_tokens - num_tokens // 2), 3),
    }


def _chances(log_weights: np.ndarray, top_k: int) -> np.ndarray:
    """How often each expert is among those chosen, by counting."""
    random = np.random.default_rng(1)
    noise = random.gumbel(size=(2000, log_weights.size))
    chosen = np.argpartition(-(log_weights + noise), top_k, axis=1)[:, :top_k]
    return np.bincount(chosen.ravel(), minlength=log_weights.size) / len(noise)


def lru(routes: list[list[np.ndarray]], capacity: int) -> float:
    """The hit rate, in the second half, of keeping the experts that were used last."""
    held: dict[tuple[int, int], None] = {}
    hits = total = 0
    for token, chosen in enumerate(routes):
        for layer, experts in enumerate(chosen):
            for expert in experts:
                key = layer, int(expert)
                is_hit = key in held
                held.pop(key, None)
                held[key] = None
                if len(held) > capacity:
                    held.pop(next(iter(held)))
                if token >= len(routes) // 2:
                    hits, total = hits + is_hit, total + 1
    return round(hits / total, 3)


def decayed_lfu(routes: list[list[np.ndarray]], capacity: int, decay: float = 0.99) -> float:
    """The same of keeping those with the largest counts, of which each token takes one hundredth away."""
    num_experts = 1 + max(int(experts.max()) for chosen in routes for experts in chosen)
    counts = np.zeros((len(routes[0]), num_experts))
    held = np.zeros(counts.shape, dtype=bool)
    hits = total = 0
    for token, chosen in enumerate(routes):
        counts *= decay
        for layer, experts in enumerate(chosen):
            if token >= len(routes) // 2:
                hits, total = hits + int(held[layer, experts].sum()), total + len(experts)
            counts[layer, experts] += 1
            held[layer, experts] = True
        excess = int(held.sum()) - capacity
        if excess > 0:
            scores = np.where(held, counts, np.inf).ravel()
            held.ravel()[np.argpartition(scores, excess)[:excess]] = False
    return round(hits / total, 3)


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run, in this process."""
    torch.set_num_threads(options.threads)
    if name == "packed":
        return packed(options)
    if name in ("cold", "faults"):
        drop_from_cache(options.directory)
    if name == "trace":
        return {kind: trace(options.directory, num_tokens, zipf) for kind, (zipf, num_tokens) in TRACES.items()}
    return decode(options.directory, options, {"faults": False, "requests": True}.get(name))


def write_model(options: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    done = quantize_model(f"random:{options.preset}", options.directory, options.quantization)
    seconds = time.perf_counter() - start
    found = {"seconds": round(seconds, 1), "gb": round(done.num_bytes / 1e9, 2)}
    return {**found, "mb_per_s": round(done.num_bytes / seconds / 1e6), "peak_gb": round(status("VmHWM") / 1e9, 2)}


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--preset", default="qwen3-coder-30b-a3b")
    parser.add_argument("--quantization", default="int4")
    parser.add_argument("--runs", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32, help="decoded each time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fill-context", action="store_true", help=f"end with a prompt that fills {CONTEXT} tokens")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", choices=RUNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run(options.child, options)))
        return
    found: dict[str, Any] = {
        "machine": processor(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * PAGE / 1e9, 1),
        "threads": options.threads,
        "preset": options.preset,
        "quantization": options.quantization,
        "torch": torch.__version__,
        "command": " ".join(["python", "benchmarks/big_models.py", *sys.argv[1:]]),
    }
    if not options.directory.exists():
        found["write"] = write_model(options)
        print("write", json.dumps(found["write"]), flush=True)
    for name in options.runs:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, json.dumps(found[name]), flush=True)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
