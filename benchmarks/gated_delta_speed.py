"""Gated DeltaNet between its projections: the C++ kernel beside its PyTorch form.

    python benchmarks/gated_delta_speed.py [--threads 2] [--rounds 7] [--output benchmarks/results/NAME.json]

One layer of the Coder-Next shape: 16 key heads, 32 value heads, key and value dims of 128, conv width 4, in bf16. The
work is convolution, gates, recurrence and gated norm, without the projections. A round goes through the states of
several layers, so that a state is out of the processor's own caches when its turn comes again. The two forms and the
roofline take turns, and medians are reported. The roofline of decode is a plain pass over as many states that reads and
writes them (a multiplication in place, by PyTorch). That of prefill is the same number of fp32 operations, 7 * K * V
for a token and value head, at the speed of PyTorch's matrix product of 1,024 rows and columns. PyTorch's form of
prefill works in chunks of 64 tokens, with other operations. PyTorch's threads sleep between operations
(OMP_WAIT_POLICY=passive): where another program runs, they otherwise wait for each other for milliseconds.
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

from codemill.config import LinearAttentionConfig
from codemill.kernels import gated_delta
from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.segments import Segment, Segments
from codemill.models import ForwardContext
from codemill.models.cache import LinearState
from codemill.models.gated_deltanet import GatedDeltaNet
from codemill.presets import PRESETS

# (sequences, new tokens of each, layers whose states a round goes through)
CASES = [(1, 1, 32), (8, 1, 8), (1, 16, 8), (1, 2048, 1)]
MATRIX = 1024


class Given(torch.nn.Module):
    """Stands for a projection: returns what it was given, or what it gets."""

    row_block = 0

    def __init__(self, out: Tensor | None = None) -> None:
        super().__init__()
        self.out = out

    def forward(self, x: Tensor, adapters: object) -> Tensor:
        return x if self.out is None else self.out


@dataclass(frozen=True)
class Inputs:
    """One case: a mixer whose projections are given, the states of several layers, and the segments."""

    mixer: GatedDeltaNet
    linear: LinearAttentionConfig
    states: list[LinearState]
    context: ForwardContext
    x: Tensor  # [1, N, 1]
    matrix: Tensor

    def run(self) -> None:
        for state in self.states:
            self.mixer(self.x, self.context, state)

    def run_in_pytorch(self) -> None:
        with mock.patch.object(gated_delta, "load_cpu_library", return_value=None):
            self.run()

    def touch_states(self) -> None:
        for state in self.states:
            state.recurrent.mul_(1.0)

    def multiply(self) -> None:
        self.matrix @ self.matrix


def draw(num_sequences: int, num_new: int, num_layers: int) -> Inputs:
    config = PRESETS["qwen3-coder-next"].config
    linear = config.linear_attention
    assert linear is not None
    num_tokens, heads = num_sequences * num_new, linear.num_value_heads
    mixer = GatedDeltaNet(config).bfloat16()
    for parameter in mixer.parameters():
        parameter.normal_()
    mixer.in_proj_qkvz = Given(torch.randn(1, num_tokens, 2 * (linear.key_dim + linear.value_dim)).bfloat16())
    mixer.in_proj_ba = Given(torch.randn(1, num_tokens, 2 * heads).bfloat16())
    mixer.out_proj = Given()
    states = [
        LinearState(
            torch.randn(num_sequences, heads, linear.key_head_dim, linear.value_head_dim),
            torch.randn(num_sequences, linear.conv_kernel_dim - 1, linear.conv_channels).bfloat16(),
        )
        for _ in range(num_layers)
    ]
    each = tuple(Segment(num_new, 64, (), slot) for slot in range(num_sequences))
    segments = Segments(each, 64, torch.device("cpu"))
    context = ForwardContext(torch.empty(0), torch.empty(0), segments=segments)
    x = torch.zeros(1, num_tokens, 1, dtype=torch.bfloat16)
    return Inputs(mixer, linear, states, context, x, torch.randn(MATRIX, MATRIX))


def measure(inputs: Inputs, rounds: int) -> dict[str, float]:
    """Seconds of a form's call, medians over the rounds."""
    forms = {
        "codemill": inputs.run,
        "pytorch": inputs.run_in_pytorch,
        "states": inputs.touch_states,
        "matrix": inputs.multiply,
    }
    series: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, form in forms.items():
            seconds = timed(form)
            if number > 0:  # the first round warms up
                series[name].append(seconds)
    return {name: statistics.median(values) for name, values in series.items()}


def timed(work: Callable[[], Any]) -> float:
    work()  # leaves the threads of the other form behind
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def figure(case: tuple[int, int, int], inputs: Inputs, rounds: int) -> dict[str, Any]:
    seconds, num_layers, linear = measure(inputs, rounds), len(inputs.states), inputs.linear
    ours, theirs = seconds["codemill"] / num_layers, seconds["pytorch"] / num_layers
    num_tokens, state_size = case[0] * case[1], linear.key_head_dim * linear.value_head_dim
    operations = 7 * state_size * linear.num_value_heads * num_tokens
    peak, state_bytes = 2 * MATRIX**3 / seconds["matrix"], inputs.states[0].recurrent.nbytes
    bounds = {"states": seconds["states"] / num_layers, "operations": operations / peak}
    bound = max(bounds, key=bounds.__getitem__)
    return {
        "sequences": case[0],
        "new_tokens": case[1],
        "unit": "us a layer",
        "codemill": ours * 1e6,
        "pytorch": theirs * 1e6,
        "ratio": theirs / ours,
        "tokens_per_second": num_tokens / ours,
        "bound": bound,
        "roofline": bounds[bound] * 1e6,
        "fraction": bounds[bound] / ours,
        "state_bandwidth": 2 * state_bytes / bounds["states"],
        "peak_operations": peak,
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
    figures = []
    for case in CASES:
        with torch.inference_mode():
            figures.append(figure(case, draw(*case), arguments.rounds))
        print(json.dumps(figures[-1]), flush=True)
    result: dict[str, Any] = {
        "machine": {"processor": processor(), "threads": arguments.threads},
        "versions": {name: version(name) for name in ("codemill", "torch")},
        "command": " ".join(["python", "benchmarks/gated_delta_speed.py", *sys.argv[1:]]),
        "rounds": arguments.rounds,
        "figures": figures,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
