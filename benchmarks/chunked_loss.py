"""Peak memory and time of the cross entropy at a vocabulary of 151,936: chunked, beside all logits at once.

    python benchmarks/chunked_loss.py [--threads 2] [--rounds 2] [--output benchmarks/results/chunked_loss.json]

A case is one loss with its gradients by hidden states and head, D = 1,024 as in Qwen3-0.6B, weights in fp32 and
products in bf16 (autocast), as in training, or in fp32. Each case runs in a process of its own. Memory is the process's
highest beyond what it held before, with hidden states, head and the gradient of both in it; the gradients alone take
what `gradients_mb` says. Plain cases that would need more than `--most-gb` are left out, with an estimate from the
memory per token of a smaller case.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers_speed import peak_memory, processor

from codemill.train.chunked import chunked_cross_entropy
from codemill.train.losses import weighted_cross_entropy

VOCAB_SIZE, HIDDEN_SIZE = 151_936, 1024
CASES = [
    ("bfloat16", 2048, "plain"),
    *(("bfloat16", 2048, f"chunked {megabytes}") for megabytes in (64, 128, 256)),
    ("bfloat16", 2048, "chunked 128, head frozen"),
    ("bfloat16", 8192, "plain"),
    ("bfloat16", 8192, "chunked 128"),
    ("bfloat16", 8192, "chunked 128, head frozen"),
    ("float32", 2048, "plain"),
    ("float32", 2048, "chunked 128"),
]


def loss_of(form: str, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    if form == "plain":
        return weighted_cross_entropy(hidden @ head.T, targets, weights)
    megabytes = int(form.split()[1].rstrip(","))
    return chunked_cross_entropy(hidden, head, targets, weights, megabytes << 20)


def measure(precision: str, num_tokens: int, form: str, rounds: int) -> dict[str, Any]:
    """Runs in the child: the first round counts for memory, the others for time."""
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, HIDDEN_SIZE, requires_grad=True)
    head = torch.randn(VOCAB_SIZE, HIDDEN_SIZE).mul_(0.02).requires_grad_("frozen" not in form)
    targets, weights = torch.randint(VOCAB_SIZE, (num_tokens,)), torch.ones(num_tokens)
    before, seconds = peak_memory(), []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of(form, hidden, head, targets, weights)
        loss.backward()
        seconds.append(time.perf_counter() - start)
        hidden.grad = head.grad = None
    peak = peak_memory() - before
    gradients = hidden.nbytes + (head.nbytes if head.requires_grad else 0)
    timed = statistics.median(seconds[1:])
    return {"loss": loss.item(), "peak_mb": peak / 1e6, "gradients_mb": gradients / 1e6, "seconds": timed}


def run_case(case: tuple[str, int, str], arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", json.dumps(case), "--threads", str(arguments.threads)]
    done = subprocess.run([*command, "--rounds", str(arguments.rounds)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def estimate(figures: list[dict[str, Any]], precision: str, num_tokens: int) -> float:
    """MB of a plain case, from the memory per token beyond the gradients of a measured one."""
    (known,) = (each for each in figures if each["form"] == "plain" and each["precision"] == precision)
    per_token = (known["peak_mb"] - known["gradients_mb"]) / known["tokens"]
    return float(known["gradients_mb"] + per_token * num_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--most-gb", type=float, default=6.0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.case:
        print(json.dumps(measure(*arguments.case, arguments.rounds)))
        return
    figures: list[dict[str, Any]] = []
    for case in CASES:
        precision, num_tokens, form = case
        figure: dict[str, Any] = {"precision": precision, "tokens": num_tokens, "form": form}
        needed = num_tokens * VOCAB_SIZE * 4 * 4 / 1e9  # four arrays of logits in fp32
        if form == "plain" and needed > arguments.most_gb:
            figure["estimated_peak_mb"] = estimate(figures, precision, num_tokens)
        else:
            figure |= run_case(case, arguments)
        figures.append(figure)
        print(json.dumps(figure), flush=True)
    result: dict[str, Any] = {
        "machine": {"processor": processor(), "threads": arguments.threads},
        "versions": {name: version(name) for name in ("codemill", "torch")},
        "command": " ".join(["python", "benchmarks/chunked_loss.py", *sys.argv[1:]]),
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "rounds": arguments.rounds,
        "figures": figures,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
