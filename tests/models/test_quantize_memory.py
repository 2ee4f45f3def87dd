"""Quantising a checkpoint needs memory for a matrix or two, not for the model; being killed leaves nothing behind."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from codemill.config import ModelConfig
from codemill.models import initialize, load_model, save_pretrained
from codemill.models.quantize_directory import quantize_model
from codemill.models.skeleton import build, materialize

CLEAR_REFS = Path("/proc/self/clear_refs")
MIB = 2**20
CONFIG = ModelConfig.from_dict(
    {
        "model_type": "qwen3_moe",
        "vocab_size": 4096,
        "hidden_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 1024,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 320,
    }
)
# Reports the peak of resident memory in bytes, over what was resident before, of each step.
SCRIPT = """
import json, sys, torch
from codemill.models import load_model
from codemill.models.quantize_directory import quantize_model

def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))

def measure(action):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak to what is resident now
    before = resident("VmRSS")
    result = action()
    return result, resident("VmHWM") - before

source, target = sys.argv[1:]
measure(lambda: torch.ones(10).bfloat16().float())
done, quantize = measure(lambda: quantize_model(source, target, "int4", max_shard_bytes=20_000_000))
model, mapped = measure(lambda: load_model(target))
loading = measure(lambda: load_model(source, quantization="int4"))[1]
found = {"source": done.source_bytes, "size": done.num_bytes}
print(json.dumps({**found, "quantize": quantize, "mapped": mapped, "loading": loading}))
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 460 MB of fp32 weights in shards."""
    model = build(CONFIG, torch.float32)
    materialize(model, torch.device("cpu"))
    initialize(model)
    directory = tmp_path_factory.mktemp("sharded")
    save_pretrained(model, directory, max_shard_bytes=40_000_000)
    return directory


def test_peak_memory(sharded: Path, tmp_path: Path) -> None:
    if not CLEAR_REFS.exists():
        pytest.skip("peak memory is measured through Linux's /proc")
    command = [sys.executable, "-c", SCRIPT, str(sharded), str(tmp_path / "small")]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["source"] > 400 * MIB
    assert found["size"] < found["source"] / 7
    # The largest matrix takes 16 MiB, a packed layer of experts 6; the rest are fp32 temporaries of a slice of rows.
    assert found["quantize"] < 64 * MIB
    assert found["loading"] < found["size"] + 64 * MIB
    assert found["mapped"] < 8 * MIB


def test_a_killed_run_leaves_no_model_and_the_next_one_works(sharded: Path, tmp_path: Path) -> None:
    target = tmp_path / "small"
    script = "import sys; from codemill.models.quantize_directory import quantize_model; quantize_model(*sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", script, str(sharded), str(target)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".small.quantizing-*/*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    quantize_model(sharded, target, "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert load_model(target).config.quantization is not None
