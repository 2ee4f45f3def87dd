"""Checkpoints: what is kept, that a run goes on from them to the same bits, and one line for what cannot be used."""

import random
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers

from codemill.errors import CodemillError
from codemill.models.loader import load_model
from codemill.train.balance_config import BalanceConfig
from codemill.train.checkpoint import Checkpoints
from codemill.train.export import save_checkpoint, save_whole
from codemill.train.log import TrainingLog
from codemill.train.loop import Trainer
from codemill.train.lora_config import LoraSection
from codemill.train.parallel import Parallel, Processes
from codemill.train.parallel_config import ParallelConfig
from train.conftest import make_model, make_trainer
from train.parallel_runs import ADAMW, LOOP, MUON, Case, Outcome, make_policy, outcome, whole
from train.parallel_runs import make_trainer as make_case
from train.processes import run_killed, run_killed_together, run_processes

OFTEN = replace(LOOP, steps=6, checkpoint_every=2)
LORA = LoraSection(rank=2, alpha=4, dropout=0.1)  # whose masks are random numbers
CASES = {
    "dense": Case("qwen3", loop=OFTEN),
    "dense-muon": Case("qwen3", optimizer=MUON, loop=OFTEN),
    "moe-muon": Case("qwen3_moe", optimizer=MUON, loop=OFTEN),
    "hybrid": Case("qwen3_next", loop=OFTEN),
    "hybrid-muon": Case("qwen3_next", optimizer=MUON, loop=replace(OFTEN, precision="bfloat16")),
    "lora": Case("qwen3_moe", loop=OFTEN, lora=LORA),
    # Which experts are dead is a matter of steps before the checkpoint.
    "balanced": Case("many_experts", loop=OFTEN, balance=BalanceConfig(dead_after=3)),
}
SHARD, EXPERT = ParallelConfig(shard=True), ParallelConfig(expert=2)
OF_TWO = {
    "data-lora": Case("qwen3", loop=OFTEN, lora=LORA),
    "shard-muon": Case("qwen3", SHARD, MUON, OFTEN),
    "shard": Case("qwen3", SHARD, ADAMW, OFTEN),
    "expert-muon": Case("qwen3_moe", EXPERT, MUON, OFTEN),
    "hybrid": Case("qwen3_next", SHARD, ADAMW, OFTEN),
    "shard-bf16": Case("many_experts", SHARD, ADAMW, replace(OFTEN, precision="bfloat16"), balance=BalanceConfig()),
}


def test_the_newest_are_kept(trainer: Trainer, tmp_path: Path) -> None:
    list(trainer.run())
    assert [path.name for path in trainer.checkpoints.paths()] == ["step-00000004", "step-00000006"]
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


def stopped(trainer: Trainer, steps: int) -> None:
    """Killed, as far as what is on disk can tell, when so many steps have been reported."""
    reports = trainer.run()
    for _ in range(steps):
        next(reports)


def assert_same(found: Outcome, expected: Outcome, first: int) -> None:
    """The second one from step `first` on, counted from 0, to the last bit."""
    assert found.losses == expected.losses[first:]
    assert found.norms == expected.norms[first:]
    assert found.metrics == expected.metrics[first:]
    assert found.weights.keys() == expected.weights.keys()
    assert all(torch.equal(tensor, expected.weights[name]) for name, tensor in found.weights.items())


@pytest.mark.parametrize("name", CASES)
def test_a_stopped_run_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    expected = outcome(make_case(case, tmp_path / "whole", Parallel()))
    torch.manual_seed(2)
    stopped(make_case(case, tmp_path / "stopped", Parallel()), 3)
    torch.manual_seed(1)
    assert_same(outcome(make_case(case, tmp_path / "stopped", Parallel())), expected, first=2)
    if case.balance is not None:
        assert expected.metrics[2]["router/dead"] > 0


def resume_together(cases: dict[str, Case], directory: Path) -> dict[str, tuple[Outcome, Outcome]]:
    """Each whole, and stopped and resumed; what it leaves is also written as a model."""
    found = {}
    for name, case in cases.items():
        parallel = Processes(case.parallel)
        expected = outcome(make_case(case, directory / f"{name}-whole", parallel))
        stopped(make_case(case, directory / name, parallel), 3)
        torch.manual_seed(9)
        trainer = make_case(case, directory / name, parallel)
        found[name] = (outcome(trainer), expected)
        if case.lora is None:
            save_whole(trainer.policy.model, directory / name / "model", torch.float32, parallel)
    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, tuple[Outcome, Outcome]]]]:
    directory = tmp_path_factory.mktemp("together")
    return directory, run_processes(resume_together, directory, OF_TWO, directory)


@pytest.mark.parametrize("name", OF_TWO)
def test_two_processes_go_on_to_the_same_bits(name: str, together: Any) -> None:
    for outcomes in together[1]:
        found, expected = outcomes[name]
        assert_same(found, expected, first=2)


@pytest.mark.parametrize("name", [name for name, case in OF_TWO.items() if case.lora is None])
def test_models_in_parts_become_directories(name: str, together: Any) -> None:
    """Once from the processes at the end of their run, once from their checkpoint by one."""
    directory, outcomes = together
    weights = outcomes[0][name][0].weights
    trained = load_model(directory / name / "model", "float32")
    newest = Checkpoints(directory / name / "checkpoints", 2).paths()[-1]
    save_checkpoint(newest, trained.config, directory / name / "again", torch.float32)
    for model in (trained, load_model(directory / name / "again", "float32")):
        found = model.state_dict()
        assert found.keys() == weights.keys()
        assert all(torch.equal(tensor, weights[each]) for each, tensor in found.items())


@pytest.mark.parametrize("name", ["hybrid", "expert-muon"])
def test_transformers_loads_what_a_checkpoint_of_two_becomes(name: str, together: Any, tmp_path: Path) -> None:
    directory, outcomes = together
    model = make_policy(OF_TWO[name]).model
    newest = Checkpoints(directory / name / "checkpoints", 2).paths()[-1]
    save_checkpoint(newest, model.config, tmp_path / "model", torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="float32")
    model.load_state_dict(outcomes[0][name][0].weights)
    ids = torch.arange(40)[None] % model.config.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids), theirs(ids).logits, atol=2e-5, rtol=1e-4)


def continued(case: Case, directory: Path) -> Outcome:
    return outcome(make_case(case, directory, Processes(case.parallel)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hybrid", "expert-muon"])
def test_one_and_four_processes_go_on_alike_where_two_were(name: str, together: Any, tmp_path: Path) -> None:
    directory, _ = together
    loop = replace(OFTEN, steps=8, rows_per_micro_batch=1)
    case = replace(OF_TWO[name], loop=loop)
    for each in ("one", "four"):
        shutil.copytree(directory / name, tmp_path / each)
    alone = outcome(make_case(case, tmp_path / "one", Parallel(), num_shares=4))
    for found in run_processes(continued, tmp_path, case, tmp_path / "four", num_processes=4):
        assert found.losses == pytest.approx(alone.losses, rel=1e-4)
        assert len(found.losses) == 2
        for key, tensor in found.weights.items():
            atol = 5e-3 if "muon" in name else 1e-5
            torch.testing.assert_close(tensor, alone.weights[key], atol=atol, rtol=0, msg=key)
    save_checkpoint(
        Checkpoints(tmp_path / "four" / "checkpoints", 2).paths()[-1],
        *(make_policy(case).model.config, tmp_path / "model", torch.float32),
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="float32")
    ours = load_model(tmp_path / "model", "float32")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["shard", "expert-muon"])
def test_one_process_goes_on_where_two_were(name: str, together: Any, tmp_path: Path) -> None:
    directory, outcomes = together
    case = replace(OF_TWO[name], loop=replace(OFTEN, steps=8))
    trainer = make_case(case, directory / name, Parallel())
    assert trainer.checkpoints.restore(trainer.policy.trained, trainer.optimizers) == 6
    assert all(torch.equal(tensor, outcomes[0][name][0].weights[each]) for each, tensor in trained(trainer).items())
    state = {key: value for optimizer in trainer.optimizers for key, value in optimizer.state.items()}
    assert len(state) == len(list(trainer.policy.trained.parameters()))
    assert next(trainer.run()).step == 7


def trained(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: whole(tensor) for name, tensor in trainer.policy.trained.state_dict().items()}


def resumed_by_two(case: Case, directory: Path) -> list[float]:
    return outcome(make_case(case, directory, Processes(SHARD))).losses


def test_two_processes_go_on_where_one_was(tmp_path: Path) -> None:
    case = Case("qwen3", SHARD, loop=OFTEN)
    expected = outcome(make_case(case, tmp_path / "whole", Parallel(), num_shares=2)).losses
    stopped(make_case(case, tmp_path / "stopped", Parallel(), num_shares=2), 3)
    for losses in run_processes(resumed_by_two, tmp_path, case, tmp_path / "stopped"):
        assert losses == pytest.approx(expected[2:], rel=1e-6)


def run_to_the_end(case: Case, directory: Path) -> None:
    loop = replace(case.loop, steps=30, checkpoint_every=1)
    parallel = Processes(case.parallel) if dist.is_initialized() else Parallel()
    list(make_case(replace(case, loop=loop), directory, parallel).run())


@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["moe-muon", pytest.param("balanced", marks=pytest.mark.slow)])
def test_killed_at_any_moment(name: str, kills: int, tmp_path: Path) -> None:
    """Every step writes a checkpoint, so that many kills fall into the writing of one."""
    case, draw = CASES[name], random.Random(0)
    run_to_the_end(case, tmp_path / "whole")
    while kills:
        if run_killed(draw.uniform(0.05, 0.6), run_to_the_end, case, tmp_path / "killed"):
            kills -= 1
        else:  # it has come to its end, and another one begins
            check_same_end(case, tmp_path)
            shutil.rmtree(tmp_path / "killed")
    run_to_the_end(case, tmp_path / "killed")
    check_same_end(case, tmp_path)


@pytest.mark.slow
def test_one_of_two_killed_at_any_moment(tmp_path: Path) -> None:
    case, draw = OF_TWO["shard-bf16"], random.Random(0)
    run_processes(run_to_the_end, tmp_path, case, tmp_path / "whole")
    kills = 40
    while kills:
        if run_killed_together(draw, (0.1, 1.5), run_to_the_end, tmp_path, case, tmp_path / "killed"):
            kills -= 1
        else:
            check_same_end(case, tmp_path)
            shutil.rmtree(tmp_path / "killed")
    run_processes(run_to_the_end, tmp_path, case, tmp_path / "killed")
    check_same_end(case, tmp_path)


def check_same_end(case: Case, folder: Path) -> None:
    """Of the runs "whole" and "killed": weights, optimizers and logs."""
    states = []
    for directory in (folder / "whole", folder / "killed"):
        trainer = make_case(case, directory, Parallel())
        assert trainer.checkpoints.restore(trainer.policy.trained, trainer.optimizers) == 30
        assert not list((directory / "checkpoints").glob("*.partial"))
        states.append((trained(trainer), [x for each in trainer.optimizers for x in tensors(each.state_dict())]))
    assert all(torch.equal(tensor, states[1][0][each]) for each, tensor in states[0][0].items())
    assert all(torch.equal(one, other) for one, other in zip(states[0][1], states[1][1], strict=True))
    logs = [TrainingLog(folder / name / "log.jsonl").read() for name in ("whole", "killed")]
    whole, killed = ([replace(report, tokens_per_second=0.0, mfu=0.0) for report in log] for log in logs)
    assert whole == killed
    assert len(whole) == 30


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors(each)


DAMAGES = ("cut", "flipped", "empty", "no data", "no metadata", "metadata", "other model", "other optimizer")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_one_line_and_the_one_before_works(damage: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    list(trainer.run())
    newest = trainer.checkpoints.paths()[-1]
    spoil(newest, damage)
    again = make_trainer(tmp_path)
    if damage == "other optimizer":
        again.optimizers = again.optimizers[1:]
    with pytest.raises(CodemillError, match="delete it to use the one before") as raised:
        list(again.run())
    assert str(newest) in str(raised.value)
    assert "\n" not in str(raised.value)
    trainer.checkpoints.remove(newest)
    assert [report.step for report in make_trainer(tmp_path).run()] == [5, 6]


def spoil(path: Path, damage: str) -> None:
    (data,) = path.glob("*.distcp")
    content = data.read_bytes()
    if damage == "cut":
        data.write_bytes(content[:-2000])
    elif damage == "flipped":
        # In the numbers of the first tensor; what stores them keeps a checksum of each.
        place = content.index(b"data/0") + 500
        data.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
    elif damage == "empty":
        data.write_bytes(b"")
    elif damage == "no data":
        data.unlink()
    elif damage == "no metadata":
        (path / ".metadata").unlink()
    elif damage == "metadata":
        (path / ".metadata").write_bytes(b"garbage" * 100)
    elif damage == "other model":
        other = replace(CASES["dense"], loop=LOOP)
        trainer = make_case(other, path.parent.parent / "other", Parallel())
        trainer.checkpoints.save(6, trainer.policy.model, trainer.optimizers).rename(path.parent / "other")
        Checkpoints(path.parent, 2).remove(path)
        (path.parent / "other").rename(path)


def test_a_file_of_the_older_form(tmp_path: Path) -> None:
    (tmp_path / "step-00000004.pt").touch()
    with pytest.raises(CodemillError, match=r"step-00000004.pt is of an older version"):
        Checkpoints(tmp_path, keep=2).restore(make_model(), [])


def test_a_full_disk_leaves_the_one_before(trainer: Trainer) -> None:
    trainer.checkpoints.save(1, trainer.policy.model, trainer.optimizers)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(CodemillError, match=r"step-00000002 cannot be written \(.*\): is the disk full") as raised:
            trainer.checkpoints.save(2, trainer.policy.model, trainer.optimizers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    assert [path.name for path in trainer.checkpoints.directory.iterdir()] == ["step-00000001"]
    assert trainer.checkpoints.restore(trainer.policy.model, trainer.optimizers) == 1


def saved_with_one_full_disk(case: Case, directory: Path) -> str:
    trainer = make_case(case, directory, Processes(case.parallel))
    state = trainer.policy.trained, trainer.optimizers
    trainer.checkpoints.save(1, *state)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if trainer.parallel.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(CodemillError) as raised:
            trainer.checkpoints.save(2, *state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert trainer.checkpoints.restore(*state) == 1
    return str(raised.value)


def test_a_full_disk_of_one_process_is_an_error_of_all(tmp_path: Path) -> None:
    for message in run_processes(saved_with_one_full_disk, tmp_path, OF_TWO["shard"], tmp_path):
        assert "step-00000002 cannot be written" in message
        assert "is the disk full?" in message
        assert "\n" not in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_directory_that_cannot_be_made(trainer: Trainer, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CodemillError, match=r"step-00000001 cannot be written"):
        trainer.checkpoints.save(1, trainer.policy.model, trainer.optimizers)


def test_a_checkpoint_that_is_no_model(tmp_path: Path) -> None:
    trainer = make_case(CASES["lora"], tmp_path, Parallel())
    path = trainer.checkpoints.save(1, trainer.policy.trained, trainer.optimizers)
    with pytest.raises(CodemillError, match=r"step-00000001: model.embed_tokens.weight cannot be read"):
        save_checkpoint(path, trainer.policy.model.config, tmp_path / "model", torch.float32)
    assert not (tmp_path / "model" / "config.json").exists()
