"""A tiny model directory, and the command line called in this process."""

import io
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from codemill import cli
from codemill.data.bpe import save_tokenizer, train_tokenizer
from codemill.models import load_model, save_pretrained
from models.reference import make_ours, make_reference

TEXT = [
    "def add(first, second):\n    return first + second\n\n\nfor value in values:\n    print(value, end='')\n",
    "class Sequence:\n    def append(self, token):\n        self.tokens.append(token)\n        return None\n",
]
VOCAB_SIZE = 320
NUM_TEXT_IDS = VOCAB_SIZE - 26  # control tokens have the last ids
CONTEXT = 3072


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a failed command that printed nothing else."""
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("codemill: error: ")
        return self.err


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that write gibberish and never a control token: an answer ends where it is told to."""
    folder = tmp_path_factory.mktemp("model")
    model = make_ours(make_reference("qwen3", vocab_size=VOCAB_SIZE, max_position_embeddings=CONTEXT))
    model.lm_head.weight[NUM_TEXT_IDS:] = 0
    save_pretrained(model, folder)
    save_tokenizer(train_tokenizer(TEXT, VOCAB_SIZE), folder)
    return folder


@pytest.fixture(scope="session")
def nan_directory(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a weight that is NaN."""
    folder = tmp_path_factory.mktemp("nan")
    shutil.copytree(model_directory, folder, dirs_exist_ok=True)
    model = load_model(folder, trainable=False)
    model.model.norm.weight = torch.nn.Parameter(torch.full_like(model.model.norm.weight, float("nan")))
    save_pretrained(model, folder)
    return folder


@pytest.fixture
def codemill(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`codemill(*arguments, stdin=b"...")` -> Outcome."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # `main` sets it for the life of its process

    def run(*arguments: str | Path, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run
