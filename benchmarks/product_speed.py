"""Products with packed weights: each variant of the C++ kernel beside PyTorch's product in bf16.

    python benchmarks/product_speed.py [--threads 1] [--rounds 7] [--output benchmarks/results/NAME.json]

Everything takes turns, and medians are reported: operations (two for a multiplication and its addition) by the CPU time
of the process, which other programs disturb least, as 10^9 a second and thread. For one row it also says how fast the
weights are read.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers_speed import processor

from codemill.kernels import cpu_product
from codemill.kernels.packed_matrix import PackedMatrix

VARIANTS = {"amx": 256, "avx512": 16, "avx2": 8}  # lanes
SHAPES = [(6144, 1024), (1024, 3072), (2048, 768)]
ROWS = [1, 8, 16, 64, 512]
FEW_ROWS = 16  # up to which there is no variant for AMX
# bits, group size, symmetric
FORMATS = [(4, 32, True), (4, 64, True), (4, 32, False), (8, 32, True)]


def product(x: Tensor, matrix: PackedMatrix, lanes: int) -> None:
    """One product by a variant; where the processor lacks it, by the next smaller one."""
    with mock.patch.object(cpu_product, "_LANES", lanes):
        cpu_product.cpu_product(x, matrix)


def medians(functions: dict[str, Callable[[], object]], num_rounds: int) -> dict[str, float]:
    """Seconds of CPU time that each takes, in turns, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(num_rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(own[1:]) for name, own in times.items()}


def measure(shape: tuple[int, int], form: tuple[int, int, bool], num_rows: int, num_rounds: int) -> dict[str, object]:
    """One row of the table."""
    weight, x = torch.randn(shape) * 0.02, torch.randn(num_rows, shape[1])
    matrix, halves = PackedMatrix.quantize(weight, *form), (x.bfloat16(), weight.bfloat16())
    functions: dict[str, Callable[[], object]] = {
        name: lambda lanes=lanes: product(x, matrix, lanes)  # type: ignore[misc]
        for name, lanes in VARIANTS.items()
        if name != "amx" or num_rows > FEW_ROWS
    }
    functions["torch_bf16"] = lambda: F.linear(*halves)
    seconds = medians(functions, num_rounds)
    operations = 2 * num_rows * weight.numel()
    row: dict[str, object] = {"shape": shape, "bits": form[0], "group": form[1], "symmetric": form[2], "rows": num_rows}
    row["gops"] = {name: round(operations / own / 1e9, 1) for name, own in seconds.items()}
    if num_rows == 1:
        row["avx512_read_gb_s"] = round(matrix.nbytes / seconds["avx512"] / 1e9, 1)
    return row


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = []
    for shape in SHAPES:
        for form in FORMATS:
            for num_rows in ROWS:
                rows.append(measure(shape, form, num_rows, arguments.rounds))
                print(json.dumps(rows[-1]), flush=True)
    head = {"command": " ".join(sys.argv), "processor": processor(), "torch": version("torch")}
    if arguments.output:
        result = {**head, "threads": arguments.threads, "results": rows}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
