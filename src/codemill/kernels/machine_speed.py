"""How fast this machine reads memory and computes: the limits that the speed of a model is held against.

Reading and the instructions of one kind are measured by the C++ loops of `kernels/cpu/machine_speed*`; where the
library was not built, by PyTorch. Matrix products are measured by PyTorch, which also uses matrix units such as AMX.
Every figure is the best of several repetitions: what disturbs a measurement only ever makes it slower.
"""

import ctypes
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from codemill.kernels.cpu_library import load_cpu_library

Instruction = Literal["float32", "int8", "bfloat16"]
INSTRUCTIONS: tuple[Instruction, ...] = ("float32", "int8", "bfloat16")  # as `enum Operation` numbers them
MATRIX_SIZE = 4096
_READ_BLOCK = 512
_COMPUTE_SECONDS = 0.05  # of one repetition, about
_FIRST_ROUNDS = 1000


def read_bandwidth(num_bytes: int, num_threads: int, repetitions: int = 5) -> float:
    """Bytes per second of reading a buffer of `num_bytes` from its start to its end, again and again.

    A buffer that fits a cache is read from there, which is what happens to weights of that size too.
    """
    num_bytes = max(_READ_BLOCK, num_bytes // _READ_BLOCK * _READ_BLOCK)
    buffer = torch.ones(num_bytes // 4, dtype=torch.int32)
    # So many passes in a measurement that the start of threads does not count.
    passes = max(1, (1 << 26) // num_bytes)

    def read() -> None:
        for _ in range(passes):
            _read_once(buffer, num_threads)

    return passes * num_bytes / _best_seconds(read, repetitions)


def _read_once(buffer: Tensor, num_threads: int) -> int:
    """The sum of the buffer's int32 words, modulo 2^32."""
    library = load_cpu_library()
    if library is None:
        return int(buffer.sum()) % (1 << 32)
    total = ctypes.c_uint32()
    library.read_memory(buffer.data_ptr(), buffer.nbytes, ctypes.byref(total), num_threads)
    return total.value


def instruction_peak(instruction: Instruction, num_threads: int, repetitions: int = 3) -> float | None:
    """Operations per second of multiply-add instructions on registers; a multiplication and an addition are two.

    None where the processor has no such instruction, or the library was not built.
    """
    library = load_cpu_library()
    if library is None:
        return None
    number, count = INSTRUCTIONS.index(instruction), ctypes.c_size_t()

    def compute(rounds: int) -> Callable[[], Any]:
        return lambda: library.compute(number, rounds, ctypes.byref(count), num_threads)

    seconds = _best_seconds(compute(_FIRST_ROUNDS), 1)
    if not count.value:
        return None
    rounds = max(_FIRST_ROUNDS, round(_FIRST_ROUNDS * _COMPUTE_SECONDS / seconds))
    seconds = _best_seconds(compute(rounds), repetitions)
    return count.value / seconds


def matrix_product_peak(instruction: Instruction, repetitions: int = 3, size: int = MATRIX_SIZE) -> float | None:
    """Operations per second of PyTorch's product of two square matrices, on PyTorch's threads.

    int8 has sums in int32; None where this PyTorch has no such product.
    """
    product = _int8_product(size) if instruction == "int8" else _product(size, getattr(torch, instruction))
    if product is None:
        return None
    product()
    return 2 * size**3 / _best_seconds(product, repetitions)


def _product(size: int, dtype: torch.dtype) -> Callable[[], Any]:
    left, right = (torch.ones(size, size, dtype=dtype) for _ in range(2))
    return lambda: torch.nn.functional.linear(left, right)


def _int8_product(size: int) -> Callable[[], Any] | None:
    product = getattr(torch, "_int_mm", None)
    if product is None:
        return None
    left, right = (torch.ones(size, size, dtype=torch.int8) for _ in range(2))
    return lambda: product(left, right.t())


def _best_seconds(work: Callable[[], Any], repetitions: int) -> float:
    def once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return min(once() for _ in range(max(1, repetitions)))
