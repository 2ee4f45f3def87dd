"""Prefill, decode and peak memory beside `transformers`, on the same weights, in one run.

    python benchmarks/transformers_speed.py [--threads 2] [--rounds 5] [--output benchmarks/results/NAME.json]

Each library runs in a process of its own and loads the same checkpoint of random weights. The two take turns (ours,
theirs, ours, theirs, ...), so that a machine whose speed drifts is equally kind to both; medians are reported, and the
ratio is the median of the ratios of neighbours. Prefill is the time of one token after a prompt; decode is
what 64 further tokens add to it, greedy, through each library's public `generate`. Beside each figure stands the
roofline: operations over the peak of a large matrix product, bytes over the read bandwidth, both measured here.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PROMPTS = (512, 2048)
DECODE_AFTER = 512
DECODE_TOKENS = 64
MEMORY = "peak memory"


def worker_generate(library: str, directory: str, dtype: str) -> Callable[[list[int], int], None]:
    """A function that generates `count` tokens after a prompt, by the library's public interface."""
    if library == "codemill":
        from codemill import LLM, SamplingParams

        llm = LLM(directory, dtype=dtype)

        def ours(prompt: list[int], count: int) -> None:
            params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
            assert len(llm.generate([prompt], params)[0].outputs[0].token_ids) == count

        return ours
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()

    def theirs(prompt: list[int], count: int) -> None:
        ids = torch.tensor([prompt])
        settings = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        assert out.shape[1] == len(prompt) + count

    return theirs


def serve_worker(library: str, directory: str, dtype: str, threads: int) -> None:
    """Answer each line `[prompt tokens, new tokens, seed]` with the seconds and the peak memory in bytes."""
    torch.set_num_threads(threads)
    generate = worker_generate(library, directory, dtype)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        num_prompt, count, seed = json.loads(line)
        prompt = torch.randint(1000, 100_000, (num_prompt,), generator=torch.Generator().manual_seed(seed)).tolist()
        start = time.perf_counter()
        generate(prompt, count)
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, peak_memory()]), flush=True)


def peak_memory() -> int:
    """Highest resident size in bytes. Not `getrusage`: that counts what the parent had before the program started."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class Worker:
    """The process of one library."""

    def __init__(self, library: str, directory: Path, dtype: str, threads: int) -> None:
        arguments = [sys.executable, __file__, "--worker", library, str(directory), dtype, "--threads", str(threads)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended early")
        return json.loads(line)

    def ask(self, num_prompt: int, count: int, seed: int) -> tuple[float, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([num_prompt, count, seed]) + "\n")
        self.process.stdin.flush()
        seconds, peak = self._answer()
        return seconds, peak

    def figures(self, seed: int) -> dict[str, float]:
        """One round: tokens per second for each prompt length, and for decode; the peak memory so far."""
        first = {length: self.ask(length, 1, seed)[0] for length in PROMPTS}
        both, peak = self.ask(DECODE_AFTER, 1 + DECODE_TOKENS, seed)
        rates = {f"prefill {length}": length / seconds for length, seconds in first.items()}
        return {**rates, f"decode after {DECODE_AFTER}": DECODE_TOKENS / (both - first[DECODE_AFTER]), MEMORY: peak}

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(directory: Path, dtype: str, threads: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """The figures of all rounds, by library and name. One more round before them warms both up."""
    workers = {name: Worker(name, directory, dtype, threads) for name in ("codemill", "transformers")}
    series: dict[str, dict[str, list[float]]] = {name: {} for name in workers}
    for number in range(-1, rounds):
        for library, worker in workers.items():
            for name, value in worker.figures(number + 1).items():
                if number >= 0:
                    series[library].setdefault(name, []).append(value)
    for worker in workers.values():
        worker.close()
    return series


def summarise(series: dict[str, dict[str, list[float]]], rooflines: dict[str, float]) -> list[dict[str, Any]]:
    rows = []
    for name, ours in series["codemill"].items():
        theirs = series["transformers"][name]
        if name == MEMORY:
            row = {
                "codemill": max(ours),
                "transformers": max(theirs),
                "ratio": max(theirs) / max(ours),
                "unit": "bytes",
            }
        else:
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            row = {"codemill": statistics.median(ours), "transformers": statistics.median(theirs), "ratio": ratio}
            row |= {"unit": "tokens/s", "roofline": rooflines[name], "fraction": row["codemill"] / rooflines[name]}
        rows.append({"figure": name, **row})
    return rows


def rooflines(config: Any, dtype: torch.dtype) -> dict[str, float]:
    """Tokens per second that this machine's matrix products (prefill) and reads (decode) would allow."""
    from codemill.footprint import count_parameters

    parameters = count_parameters(config)
    operations, bandwidth = peak_operations(dtype), read_bandwidth()
    limits = {}
    for length in PROMPTS:
        weights = 2 * (parameters - config.vocab_size * config.hidden_size)  # the head sees one token only
        attention = 2 * length * config.num_attention_heads * config.head_dim * config.num_hidden_layers
        limits[f"prefill {length}"] = operations / (weights + attention)
    kv_bytes = 2 * DECODE_AFTER * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
    limits[f"decode after {DECODE_AFTER}"] = bandwidth / ((parameters + kv_bytes) * dtype.itemsize)
    return limits


def peak_operations(dtype: torch.dtype) -> float:
    a, b = torch.ones(512, 1024, dtype=dtype), torch.ones(3072, 1024, dtype=dtype)
    return 2 * 512 * 1024 * 3072 / best_seconds(lambda: torch.nn.functional.linear(a, b))


def read_bandwidth() -> float:
    block = torch.ones(1 << 28)
    return block.nbytes / best_seconds(block.sum)


def best_seconds(work: Callable[[], Any]) -> float:
    def once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return min(once() for _ in range(10))


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="qwen3-0.6b")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve_worker(*arguments.worker, arguments.threads)
        return
    torch.set_num_threads(arguments.threads)
    from codemill.models import load_model, save_pretrained
    from codemill.spec import resolve

    result: dict[str, Any] = {
        "machine": {"processor": processor(), "threads": arguments.threads},
        "versions": {name: version(name) for name in ("codemill", "torch", "transformers")},
        "command": " ".join(["python", "benchmarks/transformers_speed.py", *sys.argv[1:]]),
        "model": f"random:{arguments.preset}",
        "rounds": arguments.rounds,
        "figures": {},
    }
    for dtype in ("bfloat16", "float32"):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / "model"
            model = load_model(result["model"], dtype=dtype)
            save_pretrained(model, directory, tokenizer_files_from=resolve(None).directory)
            limits = rooflines(model.config, model.dtype)
            del model
            series = measure(directory, dtype, arguments.threads, arguments.rounds)
        result["figures"][dtype] = summarise(series, limits)
        for row in result["figures"][dtype]:
            print(dtype, json.dumps(row), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
