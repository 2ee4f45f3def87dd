"""The probes: that they read and compute what they say, at any size. How fast is nobody's business here."""

import pytest
import torch

from codemill.kernels import cpu_library, machine_speed


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("num_words", [128, 128 * 3, 128 * 2048 * 2 + 128])
def test_every_byte_is_read_once(num_words: int, num_threads: int) -> None:
    buffer = torch.randint(-(1 << 31), 1 << 31, (num_words,), generator=torch.Generator().manual_seed(0))
    buffer = buffer.to(torch.int32)
    assert machine_speed._read_once(buffer, num_threads) == int(buffer.long().sum()) % (1 << 32)


def test_pytorch_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = torch.arange(-5, 123, dtype=torch.int32)
    total = machine_speed._read_once(buffer, 1)
    monkeypatch.setattr(machine_speed, "load_cpu_library", lambda: None)
    assert machine_speed._read_once(buffer, 1) == total
    assert machine_speed.instruction_peak("float32", 1) is None


def test_bandwidth_and_peaks_are_positive() -> None:
    assert machine_speed.read_bandwidth(1_000_001, 1, repetitions=1) > 0
    for kind in machine_speed.INSTRUCTIONS:
        peak = machine_speed.instruction_peak(kind, 1, repetitions=1)
        assert peak is None or peak > 1e6
        product = machine_speed.matrix_product_peak(kind, repetitions=1, size=64)
        assert product is None or product > 0
    if cpu_library.load_cpu_library() is not None:
        assert machine_speed.instruction_peak("float32", 1, repetitions=1) is not None
