"""`torchrun -m codemill train sft`: two processes leave what one leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from codemill import cli
from codemill.models import load_model
from codemill.train.log import TrainingLog
from train.test_sft import CONFIG, folder, tokenizer

__all__ = ["folder", "tokenizer"]  # fixtures
pytestmark = pytest.mark.usefixtures("one_thread")


# `codemill`, but that the second process fails in its third step.
FAILS = """
import os, sys
from codemill import cli
from codemill.errors import CodemillError
from codemill.train.source import PackedSource

micro_batches = PackedSource.micro_batches

def spoiled(self, step):
    if os.environ["RANK"] == "1" and step == 2:
        raise CodemillError("the disk of this machine is full")
    return micro_batches(self, step)

PackedSource.micro_batches = spoiled
sys.exit(cli.main())
"""


def start(*arguments: str, module: str = "codemill", path: str = "") -> subprocess.Popen[str]:
    """torchrun with two processes, in a process group of its own, as a shell would start it."""
    command = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", module, *arguments)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join((str(Path(cli.__file__).parents[1]), path))
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, process_group=0)


def torchrun(*arguments: str, module: str = "codemill", path: str = "") -> subprocess.CompletedProcess[str]:
    with start(*arguments, module=module, path=path) as process:
        out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


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


def start_endless(folder: Path) -> subprocess.Popen[str]:
    """A run without checkpoints of its own accord, some steps after its start."""
    never = [f"loop.{name}=1000000" for name in ("steps", "checkpoint_every", "evaluate_every")]
    options = [part for each in (*never, "parallel.shard=true") for part in ("--set", each)]
    process = start("train", "sft", write_config(folder, "run"), *options)
    deadline = time.monotonic() + 120
    while len(TrainingLog(folder / "run" / "log.jsonl").read()) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_leaves_a_checkpoint_of_all_processes(number: signal.Signals, folder: Path) -> None:
    """Ctrl-C comes to torchrun and its processes, and is passed on by torchrun once more; SIGTERM to torchrun alone."""
    with start_endless(folder) as process:
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert err.count("stopped: the same command continues") == 1, err
    assert "codemill: " not in err, err
    (checkpoint,) = (folder / "run" / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{TrainingLog(folder / 'run' / 'log.jsonl').read()[-1].step:08d}"
    assert sorted(path.name for path in checkpoint.iterdir()) == [".metadata", "__0_0.distcp", "__1_0.distcp"]


@pytest.mark.slow
def test_one_that_is_killed_ends_the_others_with_a_line(folder: Path) -> None:
    with start_endless(folder) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("codemill: error: another process has ended without a word") == 1, err


@pytest.mark.slow
def test_an_error_of_all_processes_is_said_once(folder: Path) -> None:
    result = torchrun("train", "sft", write_config(folder, "run"), "--set", "loop.rows_per_micro_batch=2")
    assert result.returncode == 1
    assert result.stderr.count("codemill: error:") == 1, result.stderr
    assert "must be a multiple of loop.rows_per_micro_batch = 2 times the 2 processes" in result.stderr


@pytest.mark.slow
def test_an_error_of_one_process_is_said_once_and_names_it(folder: Path) -> None:
    """Its messages go through the store, also where another one then has no answer from it."""
    config = write_config(folder, "run")
    (folder / "fails.py").write_text(FAILS)
    result = torchrun("train", "sft", config, module="fails", path=str(folder))
    assert result.returncode == 1
    assert result.stderr.count("codemill: error:") == 1, result.stderr
    assert "codemill: error: process 1: the disk of this machine is full" in result.stderr


@pytest.mark.slow
def test_the_plan_is_printed_once(folder: Path) -> None:
    result = torchrun("train", "sft", write_config(folder, "run"), "--dry-run", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["processes"] == 2
