"""Workers: what they answer, and how they fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codemill.bench.engines import EngineOptions
from codemill.bench.process import Worker
from codemill.bench.roofline import HeldWeights, Roofline, WeightFormat
from codemill.bench.worker import make_prompts
from codemill.bench.workload import Measurement
from codemill.config import ModelConfig
from codemill.errors import CodemillError, UsageError
from codemill.spec import resolve


@pytest.fixture
def options(tmp_path: Path) -> EngineOptions:
    directory = resolve(None).directory
    assert directory is not None
    config = json.loads((directory / "config.json").read_text())
    return EngineOptions(None, config, None, "bfloat16", 1, 64, 2, str(tmp_path))


def test_our_engine_in_a_process_of_its_own(options: EngineOptions) -> None:
    with Worker("codemill", options) as worker:
        one = worker.measure(Measurement(8, 3, 1), 1, worker.settings[0])
        two = worker.measure(Measurement(8, 3, 2), 2, worker.settings[0])
        assert min(one.first_seconds, one.decode_seconds, two.first_seconds, two.decode_seconds) > 0
        assert worker.peak_memory > worker.empty_memory > 0
        with pytest.raises(UsageError, match="context"):
            worker.measure(Measurement(80, 3, 1), 3, worker.settings[0])


def test_the_loaded_weights_are_as_many_bytes_as_are_counted(options: EngineOptions) -> None:
    with Worker("codemill", options) as worker:
        held = HeldWeights(**worker.weights["held"])
        counted = Roofline(ModelConfig.from_dict(options.config), WeightFormat(**worker.weights["format"]))
    assert held.total == counted.weight_bytes
    assert held.embedding == 4096 * 384 * 2
    assert (held.experts, worker.weights["format"]["bits"]) == (0, 16)


def test_a_measurement_without_decode(options: EngineOptions) -> None:
    with Worker("codemill", options) as worker:
        timing = worker.measure(Measurement(8, 1, 1), 1, worker.settings[0])
        assert timing.first_seconds > 0
        assert timing.decode_seconds == 0


def test_a_process_that_dies_is_reported(options: EngineOptions) -> None:
    with Worker("codemill", options) as worker:
        worker._process.kill()
        with pytest.raises(CodemillError, match="ended early"):
            worker.measure(Measurement(8, 3, 1), 1, worker.settings[0])


def test_a_peer_that_is_not_installed(options: EngineOptions, tmp_path: Path) -> None:
    # An isolated Python without site-packages has no peers, but sees this package.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    with pytest.raises(CodemillError, match=r"llama.cpp is not installed in .*pip install llama-cpp-python"):
        Worker("llama.cpp", options, str(python))


def test_a_python_that_is_none(options: EngineOptions) -> None:
    with pytest.raises(UsageError, match="/no/such/python cannot be started"):
        Worker("transformers", options, "/no/such/python")


def test_prompts_differ_and_hold_no_control_token() -> None:
    request = {"seed": 1, "num_prompt": 40, "batch": 3}
    prompts = make_prompts(request, 1000)
    assert len({tuple(prompt[:4]) for prompt in prompts}) == 3
    assert all(10 <= token < 950 for prompt in prompts for token in prompt)
    assert make_prompts(request, 1000) == prompts
    assert make_prompts({**request, "seed": 2}, 1000) != prompts


def test_transformers_is_a_peer(options: EngineOptions) -> None:
    with Worker("transformers", options) as worker:
        timing = worker.measure(Measurement(8, 3, 2), 1, worker.settings[0])
        assert min(timing.first_seconds, timing.decode_seconds) > 0


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc to look at")
def test_a_busy_worker_ends_after_a_parent_that_was_killed() -> None:
    busy = "import time; from codemill.bench.worker import end_with_parent; end_with_parent(); time.sleep(60)"
    script = (
        "import subprocess, sys, time\n"
        f"worker = subprocess.Popen([sys.executable, '-c', {busy!r}])\n"
        "time.sleep(2)\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert is_running(worker)
        parent.kill()
    for _ in range(100):
        if not is_running(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker went on")
