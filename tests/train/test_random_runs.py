"""Runs of settings that nobody chose, killed at a random step and resumed: the same bits as without."""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from codemill.errors import CodemillError
from codemill.train.checkpoint import Checkpoints
from codemill.train.config_file import load_config
from codemill.train.dpo import Dpo
from codemill.train.dpo_config import DpoConfig
from codemill.train.fine_tuning import FineTuning
from codemill.train.sft import Sft
from codemill.train.sft_config import SftConfig
from train.conftest import LOOP, make_trainer, save_model

EXPERTS = {
    "model_type": "qwen3_moe",
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
HYBRID = {
    **EXPERTS,
    "model_type": "qwen3_next",
    "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
MODELS: dict[str, Mapping[str, Any]] = {"dense": {}, "experts": EXPERTS, "hybrid": HYBRID}
FEW, MANY = range(3), range(3, 120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, conversations and pairs."""
    folder = tmp_path_factory.mktemp("runs")
    for name, changes in MODELS.items():
        save_model(folder / name, **changes)
    numbers = range(24)
    chats = [{"messages": [_said("user", f"add {i}"), _said("assistant", f"{i} + 1" * (1 + i % 3))]} for i in numbers]
    pairs = [{"prompt": f"add {i}", "chosen": f"{i} + 1", "rejected": f"no {i}" * (1 + i % 4)} for i in numbers]
    for name, records in (("sft", chats), ("dpo", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return folder


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def draw_settings(rng: np.random.Generator, folder: Path) -> tuple[str, str]:
    """The method, and a TOML file."""
    method = str(rng.choice(["sft", "dpo"]))
    micro = int(rng.integers(1, 4))
    sections: dict[str, dict[str, Any]] = {
        "data": {
            "train": str(folder / f"{method}.jsonl"),
            "context": int(rng.integers(48, 129)),
            "packing": bool(rng.integers(2)),
            "cache": str(folder / "cache"),
            "validation_fraction": float(rng.choice([0.0, 0.2])),
        },
        "optimizer": {
            "name": str(rng.choice(["adamw", "muon"])),
            "lr": 5e-3,
            "matrix_lr": 5e-3,
            "schedule": str(rng.choice(["constant", "linear", "cosine", "wsd"])),
            "warmup_steps": int(rng.integers(0, 4)),
            "max_grad_norm": float(rng.choice([0.0, 1.0])),
        },
        "loop": {
            "steps": 6,
            "rows_per_micro_batch": micro,
            "rows_per_step": micro * int(rng.integers(1, 4)),
            "precision": str(rng.choice(["float32", "bfloat16"])),
            "recompute": bool(rng.integers(2)),
            "skip_spikes_over": float(rng.choice([0.0, 3.0])),
            "seed": int(rng.integers(100)),
            "evaluate_every": int(rng.integers(1, 7)),
            "checkpoint_every": int(rng.integers(1, 5)),
            "keep_checkpoints": int(rng.integers(1, 3)),
        },
    }
    model = str(rng.choice(list(MODELS)))
    if method == "dpo":
        sections["dpo"] = {"loss": str(rng.choice(["sigmoid", "ipo", "simpo"]))}
    if rng.random() < 0.5:
        sections["lora"] = {"rank": 2, "dropout": float(rng.choice([0.0, 0.3])), "rslora": bool(rng.integers(2))}
    if model != "dense" and rng.random() < 0.5:
        sections["balance"] = {"coefficient": 0.01}
    head = f'output = "OUTPUT"\nmodel = "{folder / model}"\n'
    return method, head + "".join(map(_section, sections, sections.values()))


def _section(name: str, values: Mapping[str, Any]) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def open_run(method: str, text: str, output: Path) -> FineTuning:
    """A new process's view of the run in `output`."""
    path = output.with_suffix(".toml")
    path.write_text(text.replace("OUTPUT", str(output)))
    return Sft(load_config(SftConfig, path)) if method == "sft" else Dpo(load_config(DpoConfig, path))


def train(run: FineTuning, kill_after: int | None = None) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and the losses of the steps that this took; killed where it is about to begin another one."""
    torch.manual_seed(0)  # as in a new process
    trainer, reports = run.start(), []
    with closing(trainer.run()) as steps:
        for report in steps:
            reports.append(report)
            if report.step == kill_after:
                break
    return dict(trainer.policy.trained.state_dict()), [report.loss for report in reports]


def check(seed: int, folder: Path, output: Path) -> None:
    rng = np.random.default_rng(seed)
    method, text = draw_settings(rng, folder)
    expected, losses = train(open_run(method, text, output / "whole"))
    assert len(losses) == 6
    kill_after = int(rng.integers(1, 6))
    broken = output / "broken"
    train(open_run(method, text, broken), kill_after)
    found, rest = train(open_run(method, text, broken))
    assert rest == losses[6 - len(rest) :]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("seed", FEW)
def test_a_few_resume_exactly(seed: int, folder: Path, tmp_path: Path) -> None:
    check(seed, folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", MANY)
def test_many_resume_exactly(seed: int, folder: Path, tmp_path: Path) -> None:
    check(seed, folder, tmp_path)


@pytest.mark.parametrize("skip", [0.0, 3.0])
def test_a_rate_that_makes_the_loss_no_number_leaves_the_checkpoint_before_whole(skip: float, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, replace(LOOP, steps=40, checkpoint_every=2, skip_spikes_over=skip))
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = 1e30
    with pytest.raises(CodemillError, match=r"lower optimizer\.lr and matrix_lr"):
        list(trainer.run())
    paths = Checkpoints(tmp_path / "checkpoints", 2).paths()
    again = make_trainer(tmp_path)
    last = int(paths[-1].name.removeprefix("step-")) if paths else 0
    assert again.checkpoints.restore(again.policy.trained, again.optimizers) == last
