"""Peak memory of loading and saving stays under the model's size plus one tensor group (a decoder layer)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from codemill.config import ModelConfig
from codemill.models import initialize, save_pretrained
from codemill.models.skeleton import build, materialize

CLEAR_REFS = Path("/proc/self/clear_refs")
MIB = 2**20
SLACK = 8 * MIB  # Python objects, and the kernel's batching of its counters
CONFIG = ModelConfig.from_dict(
    {
        "model_type": "qwen3_moe",
        "vocab_size": 4096,
        "hidden_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 1024,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 320,
    }
)
# Reports bytes: the model's size, and the peak of resident memory over what was resident before.
SCRIPT = """
import json, sys, torch
from codemill.models import load_model, save_pretrained

def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))

def measure(action):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak to what is resident now
    before = resident("VmRSS")
    result = action()
    return result, resident("VmHWM") - before

directory, dtype, target = sys.argv[1:]
measure(lambda: torch.ones(10).bfloat16().float())
model, load = measure(lambda: load_model(directory, dtype=dtype))
touch = measure(lambda: [parameter.sum() for parameter in model.parameters()])[1]
save = measure(lambda: save_pretrained(model, target, max_shard_bytes=40_000_000))[1]
size = sum(parameter.nbytes for parameter in model.parameters())
layer = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
# Some operations on meta tensors import torch's compiler, which takes longer than loading a small model.
slow_imports = [name for name in ("sympy", "torch._dynamo") if name in sys.modules]
found = {"size": size, "layer": layer, "load": load, "touch": touch, "save": save, "slow_imports": slow_imports}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 300 MB of fp32 experts, one by one, in shards."""
    if not CLEAR_REFS.exists():
        pytest.skip("peak memory is measured through Linux's /proc")
    model = build(CONFIG, torch.float32)
    materialize(model, torch.device("cpu"))
    initialize(model)
    directory = tmp_path_factory.mktemp("sharded")
    save_pretrained(model, directory, max_shard_bytes=40_000_000)
    return directory


def measure(directory: Path, dtype: str, target: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", SCRIPT, str(directory), dtype, str(target)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_converted_and_stacked(sharded: Path, tmp_path: Path) -> None:
    found = measure(sharded, "bf16", tmp_path)
    assert 120 * MIB < found["size"] < 200 * MIB
    assert found["size"] - SLACK < found["load"] < found["size"] + found["layer"]
    # A single tensor of a group is in memory twice, not the whole group: an embedding in fp32 is the largest.
    assert found["load"] < found["size"] + CONFIG.vocab_size * CONFIG.hidden_size * 4 + SLACK
    assert found["save"] < SLACK
    assert not found["slow_imports"]


def test_mapped_in_place(sharded: Path, tmp_path: Path) -> None:
    found = measure(sharded, "fp32", tmp_path)
    # Only the experts, which are stacked, are copied; the rest is read when it is used.
    experts = CONFIG.num_hidden_layers * 3 * 16 * 320 * 1024 * 4
    assert found["load"] < experts + SLACK
    assert found["touch"] > found["size"] - experts - SLACK
    assert found["save"] < SLACK
