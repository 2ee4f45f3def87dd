"""The machine: what it is, and the limits measured on it."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codemill.footprint import available_memory

BUFFER_BYTES = 1 << 30  # more than most last-level caches give one program
_MEMORY_SHARE = 8  # of the available memory, the buffer takes at most one part in so many
_OTHER_PRODUCTS = {"bfloat16": ("bfloat16", "float32"), "float32": ("float32",), "int8": ("int8",)}


@dataclass(frozen=True)
class Machine:
    """bandwidth: buffer size in bytes -> bytes/s. instructions, products: kind -> operations/s, of one multiply-add
    instruction and of PyTorch's matrix product (which has AMX where there is one)."""

    processor: str
    num_cores: int
    num_threads: int
    bandwidth: Mapping[int, float]
    instructions: Mapping[str, float]
    products: Mapping[str, float]
    load_average: float = 0.0  # cores that were busy in the minute before, this program's own work included

    def read_limit(self, num_bytes: float) -> float:
        """Bytes per second at which `num_bytes` can be read again and again: weights that fit a cache stay there."""
        nearest = min(self.bandwidth, key=lambda size: abs(size - num_bytes))
        return max(self.bandwidth[nearest], self.bandwidth[max(self.bandwidth)])

    def compute_limit(self, kind: str) -> float:
        """Operations per second of products of that kind, by the fastest way that gives their accuracy."""
        kinds = _OTHER_PRODUCTS[kind]
        return max(source.get(each, 0.0) for each in kinds for source in (self.instructions, self.products))

    def seconds(self, num_bytes: float, num_operations: float, kind: str) -> float:
        """The least time for a step that reads and computes so much: the slower of the two, as they overlap."""
        return max(num_bytes / self.read_limit(num_bytes), num_operations / self.compute_limit(kind))

    def to_json(self) -> dict[str, Any]:
        return {
            "processor": self.processor,
            "cores": self.num_cores,
            "threads": self.num_threads,
            "load_average": self.load_average,
            "read_bandwidth": [
                {"buffer_bytes": size, "bytes_per_second": value} for size, value in sorted(self.bandwidth.items())
            ],
            "peak_operations": {
                "instruction": dict(self.instructions),
                "matrix_product": dict(self.products),
                "unit": "operations/s",
            },
        }


def measure_machine(num_threads: int, sizes: tuple[int, ...], *, quick: bool = False) -> Machine:
    """Measure for buffers of `sizes` bytes and one that is larger than a cache. `quick` for models that are small."""
    import torch

    from codemill.kernels import machine_speed

    load_average = os.getloadavg()[0]
    torch.set_num_threads(num_threads)
    largest = min(BUFFER_BYTES >> (3 if quick else 0), available_memory() // _MEMORY_SHARE)
    buffers = {largest, *(min(size, largest) for size in sizes)}
    instructions = {kind: machine_speed.instruction_peak(kind, num_threads) for kind in machine_speed.INSTRUCTIONS}
    size = machine_speed.MATRIX_SIZE // (4 if quick else 1)
    products = {kind: machine_speed.matrix_product_peak(kind, size=size) for kind in machine_speed.INSTRUCTIONS}
    return Machine(
        processor=processor_name(),
        num_cores=os.cpu_count() or 1,
        num_threads=num_threads,
        bandwidth={buffer: machine_speed.read_bandwidth(buffer, num_threads) for buffer in buffers},
        instructions={kind: value for kind, value in instructions.items() if value is not None},
        products={kind: value for kind, value in products.items() if value is not None},
        load_average=load_average,
    )


def processor_name(root: Path = Path("/")) -> str:
    """The processor as the system calls it."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
