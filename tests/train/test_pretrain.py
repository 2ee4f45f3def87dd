"""`codemill train pretrain` from the file to a model that others load, at the smallest size there is."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from codemill import cli
from codemill.data.corpus import Module, split_modules, stdlib_modules
from codemill.models import load_model
from codemill.train import pretrain
from codemill.train.log import TrainingLog
from codemill.train.loop import Trainer
from codemill.train.pretrain import held_out_modules

CONFIG = """
output = "{output}"
[model]
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 8
intermediate_size = 24
max_position_embeddings = 128
[data]
vocab_size = 320
context = 128
tasks = 20
held_out_fraction = 0.4
[loop]
steps = 4
rows_per_step = 2
rows_per_micro_batch = 1
log_every = 2
evaluate_every = 2
checkpoint_every = 3
"""
Train = Callable[..., int]


@pytest.fixture(scope="module")
def few_modules() -> list[Module]:
    """Modules of the standard library on both sides of the split."""
    names = {"bisect", "colorsys", "keyword", "sched", "stat", "this"}
    modules = [module for module in stdlib_modules() if module.name in names]
    assert all(split_modules(modules, 0.4))
    return modules


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, few_modules: list[Module], tmp_path: Path) -> Train:
    """`train(*options, output=NAME)`: the command's exit status; output goes to that name in the test's folder."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(pretrain, "stdlib_modules", lambda: few_modules)
    monkeypatch.setattr(pretrain, "_TOKENIZER_TASKS", 20)
    monkeypatch.setattr(pretrain, "_VALIDATION_TASKS", 3)

    def run(*options: str, output: str = "run") -> int:
        path = tmp_path / f"{output}.toml"
        path.write_text(CONFIG.format(output=tmp_path / output))
        return cli.main(["train", "pretrain", str(path), *options])

    return run


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_model(directory / "model").state_dict()


def same_weights(first: Path, second: Path) -> bool:
    mine, theirs = weights(first), weights(second)
    return set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_from_the_file_to_a_model(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--threads", "1") == 0
    captured = capsys.readouterr()
    assert captured.out == f"model: {tmp_path / 'run' / 'model'}\n"
    lines = captured.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 2", "step 4"]
    assert all("tokens/s, MFU " in line and ", modules " in line and ", tasks " in line for line in lines)
    assert [report.step for report in TrainingLog(tmp_path / "run" / "log.jsonl").read()] == [1, 2, 3, 4]

    model = tmp_path / "run" / "model"
    check_transformers(model)
    assert cli.main(["generate", "def add(", "--model", str(model), "--max-tokens", "5"]) == 0
    assert cli.main(["complete", __file__, "--model", str(model), "--window", "--max-tokens", "5"]) == 0


def check_transformers(model: Path) -> None:
    ids = transformers.AutoTokenizer.from_pretrained(model)("def add(a, b):\n    return", return_tensors="pt")[
        "input_ids"
    ]
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(ids).logits
    ours = load_model(model, dtype="float32")(ids)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert load_model(model).dtype == torch.bfloat16
    stops = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    assert reference.generation_config.eos_token_id == stops


def test_json_and_a_second_time(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["model"], first["steps"]) == (str(tmp_path / "run" / "model"), 4)
    assert 5 < first["loss"] < 7
    assert train("--json") == 0
    assert json.loads(capsys.readouterr().out)["loss"] is None


def test_ctrl_c_ends_with_130_and_the_same_command_continues(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(output="whole") == 0
    original, steps = Trainer._accumulate, iter(range(100))

    def accumulate(self: Trainer, *arguments: Any) -> Any:
        if next(steps) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_accumulate", accumulate)
    capsys.readouterr()
    assert train() == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("stopped: the same command continues\n")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert not (tmp_path / "run" / "model").exists()
    assert train() == 0
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_data_is_made_once(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train() == 0
    monkeypatch.setattr(pretrain, "_write_data", None)
    assert train("--set", "loop.steps=5") == 0


def test_checkpoints_of_other_data_are_refused(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    capsys.readouterr()
    assert train("--set", "data.tasks=21") == 2
    captured = capsys.readouterr()
    assert captured.err == (
        f"codemill: error: {tmp_path / 'run'} holds a run on other data: give another output, or delete that one\n"
    )
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert train("--set", "data.tasks=21") == 0


def test_half_written_data_is_made_again(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train("--set", "loop.steps=1") == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "save_rows", interrupt)
        assert train("--set", "data.tasks=21") == 130
    assert not (tmp_path / "run" / "data" / "fingerprint").exists()
    assert train("--set", "loop.steps=1") == 0


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_nothing_held_out(train: Train, tmp_path: Path) -> None:
    assert train("--set", "data.held_out_fraction=0") == 0
    reports = TrainingLog(tmp_path / "run" / "log.jsonl").read()
    assert set(reports[-1].validation or ()) == {"tasks"}


@pytest.mark.parametrize(
    ("setting", "status", "message"),
    [
        ("data.vocab_size=100", 2, "vocab_size 100 is too small"),
        ("data.vocab_size=90000", 1, "give more text"),
        ("data.context=32", 2, "capacity 32 is too small"),
        ("loop.steps=0", 2, "give either loop.steps or loop.epochs"),
    ],
)
def test_settings_that_cannot_be(
    setting: str, status: int, message: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--set", setting) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_held_out_modules_are_those_no_row_has(monkeypatch: pytest.MonkeyPatch, few_modules: list[Module]) -> None:
    monkeypatch.setattr(pretrain, "stdlib_modules", lambda: few_modules)
    held_out = held_out_modules(pretrain.DataSection(held_out_fraction=0.4))
    train_side, expected = split_modules(few_modules, 0.4)
    assert held_out == expected
    assert not {module.top_level for module in held_out} & {module.top_level for module in train_side}


def test_a_second_stage_starts_from_the_model_of_the_first(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(output="first") == 0
    model = tmp_path / "first" / "model"
    second = ("--set", f"init_from={model}", "--set", "loop.steps=1", "--set", "data.mixture.task_chat=0.7")
    assert train(*second, "--set", "optimizer.lr=0", "--set", "optimizer.matrix_lr=0", output="second") == 0
    assert same_weights(tmp_path / "first", tmp_path / "second")
    tokenizers = [(tmp_path / stage / "model" / "tokenizer.json").read_bytes() for stage in ("first", "second")]
    assert tokenizers[0] == tokenizers[1]
    capsys.readouterr()
    assert train(*second, "--set", "model.intermediate_size=32", output="third") == 2
    assert "intermediate_size = 32" in capsys.readouterr().err
