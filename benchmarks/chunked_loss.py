"""Peak memory and time of the cross entropy at a vocabulary of 151,936: chunked, beside all logits at once.

    python benchmarks/chunked_loss.py [--threads 2] [--rounds 2] [--output benchmarks/results/chunked_loss.json]

A case is one loss with its gradients by hidden states and head, D = 1,024 as in Qwen3-0.6B, weights in fp32 and
products in bf16 (autocast), as in training, or in fp32. Memory is the highest of a process of its own beyond hidden
states and head, so with the gradients of both, which take what `gradients_mb` says; time is the fastest of the rounds,
in which the forms take turns. Plain cases that would need more than `--most-gb` are left out, with an estimate from the
memory per token of a smaller case.
"""

import argparse
import json
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
GROUPS = [
    ("bfloat16", 2048, ("plain", "chunked 64", "chunked 128", "chunked 256", "chunked 128, head frozen")),
    ("bfloat16", 8192, ("plain", "chunked 128", "chunked 128, head frozen")),
    ("float32", 2048, ("plain", "chunked 128")),
]


def loss_of(form: str, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    if form == "plain":
        return weighted_cross_entropy(hidden @ head.T, targets, weights)
    megabytes = int(form.split()[1].rstrip(","))
    return chunked_cross_entropy(hidden, head, targets, weights, megabytes << 20)


class Case:
    """One loss, on inputs that all cases of a group share."""

    def __init__(self, precision: str, num_tokens: int) -> None:
        torch.manual_seed(0)
        self.is_bf16 = precision == "bfloat16"
        self.hidden = torch.randn(num_tokens, HIDDEN_SIZE, requires_grad=True)
        self.head = torch.randn(VOCAB_SIZE, HIDDEN_SIZE).mul_(0.02)
        self.targets, self.weights = torch.randint(VOCAB_SIZE, (num_tokens,)), torch.ones(num_tokens)

    def run(self, form: str) -> tuple[float, float]:
        """Loss, with its gradients, and seconds."""
        self.hidden.grad = self.head.grad = None
        self.head.requires_grad_("frozen" not in form)
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bf16):
            loss = loss_of(form, self.hidden, self.head, self.targets, self.weights)
        loss.backward()
        return loss.item(), time.perf_counter() - start


def measure_memory(precision: str, num_tokens: int, form: str) -> dict[str, Any]:
    case = Case(precision, num_tokens)
    before = peak_memory()
    loss, _ = case.run(form)
    peak = peak_memory() - before
    gradients = case.hidden.nbytes + (case.head.nbytes if case.head.requires_grad else 0)
    return {"loss": loss, "peak_mb": peak / 1e6, "gradients_mb": gradients / 1e6}


def measure_seconds(precision: str, num_tokens: int, forms: list[str], rounds: int) -> dict[str, float]:
    """The fastest of several rounds, in which the forms take turns: what else runs on the machine only adds."""
    case = Case(precision, num_tokens)
    times = [{form: case.run(form)[1] for form in forms} for _ in range(rounds)]
    return {form: min(each[form] for each in times) for form in forms}


def in_child(arguments: argparse.Namespace, *request: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "--request", json.dumps(request), "--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
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
    parser.add_argument("--request", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.request:
        *case, last = arguments.request
        answer = measure_memory(*case, last) if isinstance(last, str) else measure_seconds(*case, last)
        print(json.dumps(answer))
        return
    figures: list[dict[str, Any]] = []
    for precision, num_tokens, forms in GROUPS:
        fits = num_tokens * VOCAB_SIZE * 4 * 4 / 1e9 <= arguments.most_gb  # four arrays of logits in fp32
        measured = [form for form in forms if fits or form != "plain"]
        seconds = in_child(arguments, precision, num_tokens, measured, arguments.rounds)
        for form in forms:
            figure: dict[str, Any] = {"precision": precision, "tokens": num_tokens, "form": form}
            if form in measured:
                figure |= {**in_child(arguments, precision, num_tokens, form), "seconds": seconds[form]}
            else:
                figure["estimated_peak_mb"] = estimate(figures, precision, num_tokens)
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
