"""Checkpoints: what is kept, and one line for what cannot be resumed from."""

from pathlib import Path

import pytest
import torch

from codemill.errors import CodemillError
from codemill.train.checkpoint import Checkpoints
from codemill.train.loop import Trainer
from train.conftest import make_model, make_trainer


def test_the_newest_are_kept(trainer: Trainer, tmp_path: Path) -> None:
    list(trainer.run())
    assert [path.name for path in trainer.checkpoints.paths()] == ["step-00000004.pt", "step-00000006.pt"]
    assert not list(tmp_path.glob("checkpoints/*.partial"))
    trainer.checkpoints.clear()
    assert trainer.checkpoints.paths() == []


def test_nothing_to_restore(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", keep=2).restore(make_model(), []) == 0


def test_randomness_is_restored(trainer: Trainer) -> None:
    trainer.checkpoints.save(3, trainer.policy.model, trainer.optimizers)
    expected = torch.rand(4)
    assert trainer.checkpoints.restore(trainer.policy.model, trainer.optimizers) == 3
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    "content", [b"", b"garbage" * 100, b"PK\x03\x04" + b"\0" * 100, "cut", "list", "without optimizers", "other model"]
)
def test_a_corrupt_one_is_one_line_and_the_one_before_works(content: bytes | str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    list(trainer.run())
    newest = trainer.checkpoints.paths()[-1]
    spoil(newest, content)
    again = make_trainer(tmp_path)
    with pytest.raises(CodemillError, match="delete it to use the one before") as raised:
        list(again.run())
    assert str(newest) in str(raised.value)
    assert "\n" not in str(raised.value)
    newest.unlink()
    assert [report.step for report in again.run()] == [5, 6]


def spoil(path: Path, content: bytes | str) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif content == "list":
        torch.save([1, 2], path)
    else:
        state = torch.load(path, weights_only=True)
        if content == "without optimizers":
            del state["optimizers"]
        else:
            state["model"] = {name: tensor[:1] for name, tensor in state["model"].items()}
        torch.save(state, path)


def test_optimizers_of_another_model(trainer: Trainer) -> None:
    trainer.checkpoints.save(1, trainer.policy.model, trainer.optimizers[:1])
    with pytest.raises(CodemillError, match="cannot be resumed from"):
        trainer.checkpoints.restore(trainer.policy.model, trainer.optimizers)


def test_a_write_that_fails_leaves_the_one_before(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.checkpoints.save(1, trainer.policy.model, trainer.optimizers)

    def fail(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3\nmore")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CodemillError, match=r"step-00000002.pt cannot be written \(Pytorch.*3\): is the disk full"):
        trainer.checkpoints.save(2, trainer.policy.model, trainer.optimizers)
    assert [path.name for path in trainer.checkpoints.directory.iterdir()] == ["step-00000001.pt"]
