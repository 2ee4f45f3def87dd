"""`torchrun -m codemill train sft`: two processes leave what one leaves."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from codemill import cli
from codemill.models import load_model
from codemill.train.log import TrainingLog
from train.test_sft import CONFIG, folder, tokenizer

__all__ = ["folder", "tokenizer"]  # fixtures


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As torchrun gives each of its processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "codemill", *arguments)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = str(Path(cli.__file__).parents[1])
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


def write_config(folder: Path, output: str) -> str:
    path = folder / f"{output}.toml"
    text = CONFIG.format(folder=folder, output=output)
    # The rate of a step must not depend on how many there are.
    path.write_text(text.replace("[optimizer]", '[optimizer]\nschedule = "constant"'))
    return str(path)


def test_a_run_that_two_begin_and_one_ends(folder: Path) -> None:
    """The two read the micro-batches that the one reads one after the other, so the sums are the same."""
    assert cli.main(["train", "sft", write_config(folder, "alone")]) == 0
    config = write_config(folder, "together")
    result = torchrun("train", "sft", config, "--set", "parallel.shard=true", "--set", "loop.steps=4", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('"steps": 4') == 1, result.stdout  # one of them speaks
    assert cli.main(["train", "sft", config]) == 0
    alone, together = (TrainingLog(folder / name / "log.jsonl").read() for name in ("alone", "together"))
    assert [(each.step, each.tokens) for each in together] == [(each.step, each.tokens) for each in alone]
    assert [each.loss for each in together] == pytest.approx([each.loss for each in alone], rel=1e-6)
    found, expected = (load_model(folder / name / "model").state_dict() for name in ("together", "alone"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-2, rtol=0)  # in bf16


@pytest.mark.slow
def test_more_processes_than_asked_for(folder: Path) -> None:
    result = torchrun("train", "sft", write_config(folder, "run"), "--set", "parallel.data=3")
    assert result.returncode != 0
    assert "[parallel] asks for 3 x 1 = 3 processes, not 2" in result.stderr
