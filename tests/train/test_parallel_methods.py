"""Every method of training by two processes leaves what one leaves: `codemill train` in both."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from codemill import cli
from codemill.spec import resolve
from codemill.train.export import save_checkpoint
from codemill.train.log import StepReport, TrainingLog
from train.conftest import save_model
from train.processes import run_processes

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = """
output = "{folder}/{output}"
model = "{folder}/base"
[data]
train = "{folder}/{train}.jsonl"
context = 64
cache = "{folder}/cache"
[optimizer]
name = "adamw"
lr = 5e-3
eps = 1e-3
warmup_steps = 1
schedule = "constant"
[loop]
steps = 4
rows_per_step = 4
rows_per_micro_batch = 2
"""
# The command, its settings, and those of the two processes.
METHODS: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "sft": ("sft", ("balance.coefficient=0.1",), ("parallel.expert=2",)),
    "sft-lora": ("sft", ("lora.rank=4",), ()),
    "sft-lora-shard": ("sft", ("lora.rank=4", "lora.targets=experts"), ("parallel.shard=true",)),
    "dpo": ("dpo", (), ()),
    "dpo-shard": ("dpo", (), ("parallel.shard=true",)),
    "dpo-expert": ("dpo", ("dpo.loss=ipo",), ("parallel.expert=2",)),
    "dpo-lora": ("dpo", ("lora.rank=4",), ()),
    "distill": ("distill", ("distill.on_policy=false", "distill.loss=forward_kl"), ("parallel.shard=true",)),
    "distill-on-policy": ("distill", ("distill.max_new_tokens=6",), ()),
    "distill-lora": ("distill", ("distill.max_new_tokens=6", "lora.rank=4"), ()),
}
EXPERTS = {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}


def arguments(name: str, folder: Path, output: str, settings: Sequence[str]) -> list[str]:
    """Of the command line; the configuration is written beside."""
    verb, path = METHODS[name][0], folder / f"{output}.toml"
    text = CONFIG.format(folder=folder, output=output, train="pairs" if verb == "dpo" else "train")
    if verb == "distill":
        text += f'[distill]\nteachers = {{ default = "{folder}/teacher", web = "{folder}/web" }}\n'
    path.write_text(text)
    return ["train", verb, str(path), *(word for each in settings for word in ("--set", each))]


def train_together(commands: dict[str, list[str]]) -> dict[str, int]:
    os.environ["WORLD_SIZE"] = str(torch.distributed.get_world_size())
    os.environ["RANK"] = str(torch.distributed.get_rank())
    return {name: cli.main(command) for name, command in commands.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    save_model(folder / "base", 0, tie_word_embeddings=False, **EXPERTS)
    for seed, name in enumerate(("teacher", "web"), start=1):
        save_model(folder / name, seed, 20.0)
    asked = [{"role": "user", "content": f"add {i}"} for i in range(30)]
    said = [{"role": "assistant", "content": f"return {i} + 1"} for i in range(30)]
    domains = [{"domain": "web"} if i % 3 == 0 else {} for i in range(30)]
    lines = [{"messages": [q, a], **domain} for q, a, domain in zip(asked, said, domains, strict=True)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"prompt": f"add {i}", "chosen": f"return {i}", "rejected": "I do not know"} for i in range(30)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def statuses(folder: Path) -> list[dict[str, int]]:
    commands = {
        name: arguments(name, folder, f"{name}-together", (*settings, *parallel))
        for name, (_, settings, parallel) in METHODS.items()
    }
    return run_processes(train_together, folder, commands)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_learn_what_one_learns(name: str, folder: Path, statuses: list[dict[str, int]]) -> None:
    assert [each[name] for each in statuses] == [0, 0]
    settings = list(METHODS[name][1])
    if "balance.coefficient=0.1" in settings:  # which is one of all tokens that are read at a time
        settings.append("loop.rows_per_micro_batch=4")
    assert cli.main(arguments(name, folder, f"{name}-alone", settings)) == 0
    together, alone = folder / f"{name}-together", folder / f"{name}-alone"
    found, expected = (TrainingLog(each / "log.jsonl").read() for each in (together, alone))
    check_reports(found, expected)
    assert found[-1].loss != found[0].loss
    weights, others = (trained(each, folder / "base") for each in (together, alone))
    assert weights.keys() == others.keys()
    for key, tensor in weights.items():
        torch.testing.assert_close(tensor, others[key], atol=2e-5, rtol=0, msg=key)
    references = sorted(alone.glob("reference-*.npy"))
    assert len(references) == (METHODS[name][0] == "dpo")
    for each in references:
        values = np.load(together / each.name)  # named after the same digest
        np.testing.assert_allclose(values, np.load(each), rtol=1e-5 if "expert" in name else 0)


def check_reports(found: list[StepReport], expected: list[StepReport]) -> None:
    assert len(found) == len(expected) == 4
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.tokens == theirs.tokens
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
        assert mine.metrics == pytest.approx(theirs.metrics, rel=1e-4, abs=1e-5)


def trained(directory: Path, base: Path) -> dict[str, Tensor]:
    """In fp32: an adapter as it was saved, or the weights of the last checkpoint."""
    (result,) = (*directory.glob("model"), *directory.glob("adapter"))
    if result.name == "adapter":
        return load_file(result / "adapter_model.safetensors")
    newest, whole = sorted((directory / "checkpoints").iterdir())[-1], directory / "whole"
    save_checkpoint(newest, resolve(str(base)).load_config(), whole, torch.float32)
    return load_file(whole / "model.safetensors")


def test_a_student_in_parts_cannot_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments("distill-on-policy", folder, "parts", ("parallel.shard=true",))) == 2
    assert "a student that answers itself is whole on every process; leave data only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("parallel.expert=3", "loop.rows_per_step=6"),
            "parallel.expert = 3 does not divide the model's num_experts = 4",
        ),
        (("parallel.tensor=4",), "parallel.tensor = 4 does not divide the model's num_attention_heads = 2"),
        (("parallel.expert=2", "lora.rank=4"), "adapters are trained with parallel.data and shard"),
        (("parallel.shard=true", "lora.quantization=int4"), "a quantised model cannot be in shards"),
        (("parallel.data=4",), "loop.rows_per_step = 4 must be a multiple of .* times the 4 processes"),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_sizes_that_do_not_fit_are_named_before_anything_loads(
    dry_run: bool, settings: Sequence[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--dry-run"] if dry_run else []
    assert cli.main([*arguments("sft", folder, "sizes", settings), *options]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_plan_is_of_each_process(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = []
    for settings in ((), ("parallel.expert=2",), ("parallel.data=2", "parallel.shard=true")):
        assert cli.main([*arguments("sft", folder, "plan", settings), "--dry-run", "--json"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert [plan["processes"] for plan in plans] == [1, 2, 2]
    alone, experts, shards = ([plan["memory"][name] for name in ("weights", "optimizer")] for plan in plans)
    assert all(0.5 * whole < part < whole for part, whole in zip(experts, alone, strict=True))
    assert shards == [size // 2 for size in alone]
    assert "gathered" in plans[2]["memory"]
    assert cli.main([*arguments("sft", folder, "plan", ("parallel.expert=2",)), "--dry-run"]) == 0
    assert "GB of memory on each of 2 processes: weights" in capsys.readouterr().out
