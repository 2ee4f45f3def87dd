"""The soak of `benchmarks/server_soak.py`, shorter: a server process, many clients, and nothing left over."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'codemill[serve]'")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def soak(monkeypatch):
    if not BENCHMARKS.is_dir():
        pytest.skip("the benchmarks are not here")
    if not Path("/proc/self/statm").exists():
        pytest.skip("what a process holds is read from /proc, which this system has not")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import server_soak

    return server_soak


def test_soak_of_seconds(soak):
    result = soak.run(seconds=6, num_clients=24)
    # While a server is new its memory still grows: what stays after minutes is for the slow test.
    assert soak.faults(result, memory_mb=40.0) == []
    assert {"stream", "whole", "left", "malformed", "tool call", "engine error"} <= result["counts"].keys()
    assert sum(result["counts"].values()) > 100


@pytest.mark.slow
def test_soak_of_minutes(soak):
    assert soak.faults(soak.run(seconds=300, num_clients=64)) == []


@pytest.mark.slow
def test_soak_of_a_real_model(soak):
    assert soak.faults(soak.run(seconds=300, num_clients=16, model="embedded"), memory_mb=40.0) == []
