"""`codemill train sft` from a JSON Lines file to a model that others load, at the smallest size there is."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from codemill import LLM, cli
from codemill.chat import Tokenizer
from codemill.models import load_model
from codemill.models.lora import LoraAdapter
from codemill.train.log import TrainingLog
from codemill.train.loop import Trainer
from train.conftest import save_model

CONFIG = """
output = "{folder}/{output}"
model = "{folder}/base"
[data]
train = "{folder}/train.jsonl"
validation_fraction = 0.2
context = 64
cache = "{folder}/cache"
[optimizer]
lr = 5e-3
matrix_lr = 5e-3
warmup_steps = 1
[loop]
steps = 6
rows_per_step = 2
rows_per_micro_batch = 1
evaluate_every = 3
checkpoint_every = 2
"""
Train = Callable[..., int]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny base model with the embedded model's tokenizer, and conversations."""
    experts = {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    }
    save_model(tmp_path / "base", tie_word_embeddings=False)
    save_model(tmp_path / "experts", tie_word_embeddings=False, **experts)
    lines = [
        {"messages": [{"role": "user", "content": f"add {i}"}, {"role": "assistant", "content": f"return {i} + 1"}]}
        for i in range(30)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.fixture
def train(folder: Path) -> Train:
    """`train(*options, output=NAME)`: the command's exit status."""

    def run(*options: str, output: str = "run") -> int:
        path = folder / f"{output}.toml"
        path.write_text(CONFIG.format(folder=folder, output=output))
        return cli.main(["train", "sft", str(path), *options])

    return run


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_model(directory).state_dict()


def same_weights(first: Path, second: Path) -> bool:
    mine, theirs = weights(first), weights(second)
    return set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_from_conversations_to_a_model(train: Train, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    captured = capsys.readouterr()
    assert captured.out == f"model: {folder / 'run' / 'model'}\n"
    reports = TrainingLog(folder / "run" / "log.jsonl").read()
    assert [report.step for report in reports if report.validation] == [3, 6]
    assert reports[-1].loss < reports[0].loss - 0.1
    assert (folder / "run" / "curves.svg").exists()

    result = folder / "run" / "model"
    assert not same_weights(result, folder / "base")
    reference = transformers.AutoModelForCausalLM.from_pretrained(result)
    assert reference.dtype == torch.bfloat16
    question = [{"role": "user", "content": "add 3"}]
    ids = torch.tensor([Tokenizer.load(result).encode_chat(question)])
    text = Tokenizer.load(result).decode(ids[0].tolist())
    assert transformers.AutoTokenizer.from_pretrained(result)(text, return_tensors="pt")["input_ids"].equal(ids)
    with torch.no_grad():
        expected = reference.float()(ids).logits
    torch.testing.assert_close(load_model(result, "float32")(ids), expected, atol=1e-4, rtol=1e-4)
    assert LLM(str(result)).chat(question)[0].outputs[0].token_ids


def test_only_what_the_assistant_says_is_learned(train: Train, folder: Path, tokenizer: Tokenizer) -> None:
    """The loss of the first step, computed once more from the text."""
    assert train("--set", "loop.steps=1", "--set", "data.validation_fraction=0", "--set", "loop.rows_per_step=30",
                 "--set", "data.packing=false") == 0  # fmt: skip
    model, total, count = load_model(folder / "base", "float32"), 0.0, 0
    for line in (folder / "train.jsonl").read_text().splitlines():
        messages = json.loads(line)["messages"]
        ids = torch.tensor(tokenizer.encode_chat(messages, add_generation_prompt=False))
        opening = len(tokenizer.encode_chat(messages[:1]))
        closing = ids.tolist().index(tokenizer.eos_token_ids[0], opening) + 1
        logprobs = model(ids[None])[0].log_softmax(-1)
        total -= logprobs[opening - 1 : closing - 1].gather(1, ids[opening:closing, None]).sum().item()
        count += closing - opening
    (report,) = TrainingLog(folder / "run" / "log.jsonl").read()
    assert report.loss == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_the_same_command_continues(
    number: signal.Signals,
    status: int,
    train: Train,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(output="whole") == 0
    original, steps = Trainer._accumulate, iter(range(100))

    def accumulate(self: Trainer, *arguments: Any) -> Any:
        if next(steps) == 2:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_accumulate", accumulate)
    capsys.readouterr()
    assert train() == status
    assert capsys.readouterr().err.endswith("stopped: the same command continues\n")
    assert train("--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["model"], result["steps"]) == (str(folder / "run" / "model"), 6)
    assert same_weights(folder / "run" / "model", folder / "whole" / "model")


def test_a_run_with_other_settings_is_not_continued(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--set", "loop.steps=2") == 0
    assert train("--set", "data.context=48") == 2
    assert "holds a run with data.context = 64, not 48: give another output" in capsys.readouterr().err
    assert train("--set", "loop.steps=4", "--set", "loop.log_every=1") == 0


def test_a_dry_run_loads_no_weights(
    train: Train, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("codemill.train.fine_tuning.load_model", None)
    assert train("--dry-run", "--set", "loop.steps=0", "--set", "loop.epochs=3", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert 15 <= plan["data"]["documents"] < 30
    assert plan["steps"] == -(-3 * plan["data"]["rows"] // 2)
    assert plan["trainable"] == plan["parameters"] == sum(x.numel() for x in weights(folder / "base").values())
    assert not (folder / "run").exists()
    assert train("--dry-run") == 0
    assert f"{plan['data']['documents']} documents in " in capsys.readouterr().out


def test_benchmarks_during_training(train: Train, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("evaluation.suites=tasks", "evaluation.limit=2", "evaluation.style=chat")
    assert train(*(part for option in options for part in ("--set", option))) == 0
    reports = TrainingLog(folder / "run" / "log.jsonl").read()
    assert [report.evaluation for report in reports if report.evaluation] == [{"tasks pass@1": 0.0}] * 2
    assert "tasks pass@1 0.000" in capsys.readouterr().err


def test_a_benchmark_that_is_not_there_is_named_at_once(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--dry-run", "--set", "evaluation.suites=taskz") == 2
    assert "there is no suite 'taskz'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": [{"role": "user", "content": "x"}]}', "train.jsonl:31"),
        ('{"messages": [{"role": "user"', "train.jsonl:31"),
    ],
)
def test_a_record_that_is_wrong_is_named(
    line: str, message: str, train: Train, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / "train.jsonl").open("a") as file:
        file.write(line + "\n")
    assert train() in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "run" / "checkpoints").exists()


def test_sizes_that_cannot_be_are_named(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--set", "data.context=129") == 2
    assert "data.context = 129, but " in capsys.readouterr().err
    monkeypatch.setattr("codemill.train.parallel_memory.available_memory", lambda: 10**8)
    assert train() == 2
    said = capsys.readouterr().err
    assert re.search(r"training takes at least 0\.[4-9] GB, this machine has 0\.1 GB free: train an adapter", said)


def test_an_adapter_in_place_of_the_model(train: Train, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PEFT loads it, to the logits of the model that trained."""
    import peft

    lora = ("--set", "lora.rank=4", "--set", "lora.alpha=16")
    assert train("--dry-run", "--json", *lora) == 0
    plan = json.loads(capsys.readouterr().out)
    assert train(*lora) == 0
    assert capsys.readouterr().out == f"model: {folder / 'run' / 'adapter'}\n"
    reports = TrainingLog(folder / "run" / "log.jsonl").read()
    assert reports[-1].loss < reports[0].loss
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(reference, folder / "run" / "adapter")
    assert plan["trainable"] == sum(x.numel() for name, x in adapted.named_parameters() if "lora_" in name)
    model = load_model(folder / "base", "float32")
    adapter = LoraAdapter.load(folder / "run" / "adapter", model.config, torch.float32)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = adapted(ids).logits
        torch.testing.assert_close(model(ids, adapters=[adapter]), expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(model(ids), expected, atol=1e-4)


def test_data_that_was_packed_before(train: Train, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, base = folder / "packed", str(folder / "base")
    inputs = [str(folder / "train.jsonl"), "--model", base, "--context", "64", "--output", str(packed)]
    assert cli.main(["data", "pack", *inputs]) == 0
    options = ("--set", f"data.train={packed}", "--set", "data.validation_fraction=0")
    plain = ("--set", "data.validation_fraction=0")
    capsys.readouterr()
    plans = []
    for each in (options, plain):
        assert train("--dry-run", "--json", *each) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert plans[0] == plans[1]
    assert train(*options) == 0
    assert train(*plain, output="plain") == 0
    assert same_weights(folder / "run" / "model", folder / "plain" / "model")
    assert train(*options, "--set", "data.context=32", output="other") == 2
    assert "was packed in rows of 64: set data.context to that" in capsys.readouterr().err


def test_the_balance_of_the_experts(train: Train, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ("--set", f"model={folder / 'experts'}")
    assert train(*model, output="plain") == 0
    assert train(*model, "--set", "balance.coefficient=0.1", output="run") == 0
    plain, balanced = (TrainingLog(folder / name / "log.jsonl").read() for name in ("plain", "run"))
    assert balanced[0].loss == pytest.approx(plain[0].loss + balanced[0].metrics["router_loss"], rel=1e-5)
    assert 0.1 < balanced[0].metrics["router_loss"] < 0.4  # 0.1 times 2 where all are alike, 4 where two have all
    assert 1 <= balanced[0].metrics["router/1/load"] <= balanced[0].metrics["router/load"] <= 2
    assert not plain[0].metrics
    assert "router/1/load" not in capsys.readouterr().err
    assert train("--set", "balance.coefficient=0.1", output="dense") == 2
    assert "[balance] is for models with experts" in capsys.readouterr().err


def test_what_is_left_out_of_the_data_is_told(train: Train, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"role": "user", "content": "why"}
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"messages": [asked]}) + "\n")
        file.write(json.dumps({"messages": [asked, {"role": "assistant", "content": "so " * 200}]}) + "\n")
    options = ("--set", "data.on_empty=skip", "--set", "data.overlong=drop")
    assert train("--dry-run", *options) == 0
    plan = capsys.readouterr().out
    lines = ["train: skipped, with nothing to learn from: 1", "train: longer than the context: 1, of these dropped: 1;"]
    assert all(line in plan for line in lines)
    assert train("--dry-run", "--json", *options) == 0
    assert json.loads(capsys.readouterr().out)["left_out"]["train"]["overlong"] == 1
    assert train("--set", "loop.steps=1", *options) == 0
    error = capsys.readouterr().err
    assert all(line in error for line in lines)
