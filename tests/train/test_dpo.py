"""DPO: closed forms, pairs packed and split, the reference's cache, and runs from a JSON Lines file to a model."""

import errno
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from codemill import cli
from codemill.data.conversations import PreferencePair
from codemill.data.packed_pairs import PackedPairs
from codemill.data.packing import Document
from codemill.errors import CodemillError, UsageError
from codemill.models import CausalLM, load_model
from codemill.train import reference
from codemill.train.adapter import TrainableLora
from codemill.train.config_file import load_config
from codemill.train.dpo import Dpo, Preference
from codemill.train.dpo_config import DpoConfig, DpoSection
from codemill.train.log import TrainingLog
from codemill.train.lora_config import LoraSection
from codemill.train.pair_batches import PairBatch, PairSource, answer_log_probs, pair_batches
from codemill.train.policy import Policy
from codemill.train.preference import ipo_losses, sigmoid_losses, simpo_losses
from codemill.train.reference import reference_log_probs
from train.conftest import LOOP, VOCAB_SIZE, make_model, save_model


def make_pairs(count: int, seed: int = 0) -> list[PreferencePair]:
    rng = np.random.default_rng(seed)

    def document(prompt: list[int]) -> Document:
        answer = rng.integers(0, VOCAB_SIZE, rng.integers(1, 6)).tolist()
        return Document.of(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer))

    prompts = [rng.integers(0, VOCAB_SIZE, rng.integers(1, 4)).tolist() for _ in range(count)]
    return [PreferencePair(document(prompt), document(prompt)) for prompt in prompts]


def log_prob(model: CausalLM, document: Document) -> float:
    """Of the answer, from whole logits of the document alone."""
    ids = torch.from_numpy(document.ids.astype(np.int64))
    with torch.no_grad():
        log_probs = model(ids[None])[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
    return (log_probs * torch.from_numpy(document.weights[1:])).sum().item()


def test_losses_by_hand() -> None:
    zero, one, two = torch.zeros(1), torch.ones(1), 2 * torch.ones(1)
    assert sigmoid_losses(one, one, 0.1).item() == pytest.approx(math.log(2))
    # sigmoid(0.5 * (1 + log 9 - 1)) = 3 / 4
    three = 1 + math.log(9) * torch.ones(1)
    assert sigmoid_losses(three, one, 0.5).item() == pytest.approx(math.log(4 / 3))
    assert sigmoid_losses(three, one, 0.5, 0.2).item() == pytest.approx(0.8 * math.log(4 / 3) + 0.2 * math.log(4))
    assert ipo_losses(two, one, 0.25).item() == pytest.approx((1 - 2) ** 2)
    assert ipo_losses(two, zero, 0.25).item() == 0
    assert simpo_losses(two, one, 2.0, 2.0).item() == pytest.approx(math.log(2))
    assert simpo_losses(one, one, 2.0, math.log(3)).item() == pytest.approx(math.log(4))


def test_packed_answers_have_the_log_probabilities_they_have_alone() -> None:
    pairs, model = make_pairs(12), make_model()
    packed = PackedPairs(pairs, 40, 0)
    for batch, row in zip(pair_batches(packed, None, range(len(packed)), 1), range(len(packed)), strict=True):
        with torch.no_grad():
            sums, counts = answer_log_probs(Policy(model), batch)
        for place, number in enumerate(packed.bins[row]):
            for side, document in enumerate((pairs[number].chosen, pairs[number].rejected)):
                assert sums[place, side].item() == pytest.approx(log_prob(model, document), rel=1e-5)
                assert counts[place, side] == document.weights.sum()


@pytest.mark.parametrize(
    "settings",
    [
        DpoSection(),
        DpoSection(loss="ipo", beta=0.5),
        DpoSection(loss="simpo", beta=2.0, gamma=0.5, label_smoothing=0.1, sft_weight=0.3),
    ],
    ids=lambda settings: settings.loss,
)
def test_how_a_step_is_cut_changes_nothing(settings: DpoSection) -> None:
    packed = PackedPairs(make_pairs(20), 40, 0)
    known = np.random.default_rng(1).normal(-5, 1, (20, 2)).astype(np.float32)
    objective = Preference(settings)

    def step(size: int) -> tuple[float, dict[str, float], list[Tensor]]:
        policy = Policy(make_model())
        batches = pair_batches(packed, known, range(len(packed)), size)
        totals = objective.counts(batches)
        assert totals["pairs"] == 20
        parts = [objective.loss(policy, batch, totals) for batch in batches]
        value = sum(part.value for part in parts)
        assert isinstance(value, Tensor)
        value.backward()
        metrics = {name: sum(part.metrics[name] for part in parts) for name in parts[0].metrics}
        return value.item(), metrics, [p.grad for p in policy.parameters() if p.grad is not None]

    (whole, metrics, gradients), (cut, cut_metrics, cut_gradients) = step(100), step(1)
    assert cut == pytest.approx(whole, rel=1e-5)
    assert cut_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(cut_gradients, gradients, rtol=1e-4, atol=1e-6)
    assert metrics["reward_margin"] == pytest.approx(metrics["reward_chosen"] - metrics["reward_rejected"], abs=1e-5)


def test_at_the_start_the_loss_is_log_2_and_a_step_makes_the_chosen_answers_likelier(tmp_path: Path) -> None:
    packed, policy = PackedPairs(make_pairs(20), 40, 0), Policy(make_model())
    known = reference_log_probs(policy, packed, tmp_path, LOOP)
    (batch,) = pair_batches(packed, known, range(len(packed)), 100)
    objective = Preference(DpoSection())
    part = objective.loss(policy, batch, objective.counts([batch]))
    assert part.value.item() == pytest.approx(math.log(2), abs=1e-5)
    assert part.metrics["reward_margin"] == pytest.approx(0, abs=1e-5)
    part.value.backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter -= 0.5 * parameter.grad
    after = objective.loss(policy, batch, objective.counts([batch]))
    assert after.value < part.value
    assert after.metrics["reward_margin"] > 0.01


class Counted:
    """`answer_log_probs`, which fails after some calls."""

    def __init__(self, most: int) -> None:
        self.calls, self.most = 0, most

    def __call__(self, policy: Policy, batch: PairBatch) -> tuple[Tensor, Tensor]:
        if self.calls == self.most:
            raise KeyboardInterrupt
        self.calls += 1
        return answer_log_probs(policy, batch)


def test_the_reference_is_computed_once_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, policy = PackedPairs(make_pairs(20), 40, 0), Policy(make_model())
    expected = np.array(reference_log_probs(policy, packed, tmp_path / "whole", LOOP))
    needed = -(-len(packed) // LOOP.rows_per_micro_batch)
    first = Counted(2)
    monkeypatch.setattr(reference, "answer_log_probs", first)
    with pytest.raises(KeyboardInterrupt):
        reference_log_probs(policy, packed, tmp_path, LOOP)
    assert not list(tmp_path.glob("*.npy"))
    second = Counted(needed)
    monkeypatch.setattr(reference, "answer_log_probs", second)
    assert np.array_equal(reference_log_probs(policy, packed, tmp_path, LOOP), expected)
    assert second.calls == needed - 2
    monkeypatch.setattr(reference, "answer_log_probs", Counted(0))
    assert np.array_equal(reference_log_probs(policy, packed, tmp_path, LOOP), expected)
    assert [path.suffix for path in tmp_path.glob("reference*")] == [".npy"]


def test_the_reference_of_other_weights_or_pairs_is_another(tmp_path: Path) -> None:
    packed = PackedPairs(make_pairs(8), 40, 0)
    first = reference_log_probs(Policy(make_model()), packed, tmp_path, LOOP)
    second = reference_log_probs(Policy(make_model(seed=1)), packed, tmp_path, LOOP)
    reference_log_probs(Policy(make_model()), PackedPairs(make_pairs(8, seed=1), 40, 0), tmp_path, LOOP)
    assert not np.array_equal(first, second)
    assert len(list(tmp_path.glob("reference-*.npy"))) == 3


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None])
def test_a_damaged_file_is_named(tmp_path: Path, damage: bytes | None) -> None:
    packed, policy = PackedPairs(make_pairs(8), 40, 0), Policy(make_model())
    reference_log_probs(policy, packed, tmp_path, LOOP)
    (path,) = tmp_path.glob("reference-*.npy")
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    with pytest.raises(CodemillError, match=f"{path.name}.*delete it"):
        reference_log_probs(policy, packed, tmp_path, LOOP)


def test_values_that_are_no_numbers_and_a_full_disk_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, policy = PackedPairs(make_pairs(8), 40, 0), Policy(make_model())
    known = np.array(reference_log_probs(policy, packed, tmp_path, LOOP))
    (path,) = tmp_path.glob("reference-*.npy")
    known[3, 1] = np.inf
    np.save(path, known)
    with pytest.raises(CodemillError, match=f"{path.name} is damaged"):
        reference_log_probs(policy, packed, tmp_path, LOOP)
    path.unlink()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CodemillError, match=r"cannot be written: No space left on device"):
        reference_log_probs(policy, packed, tmp_path, LOOP)


def test_with_an_adapter_the_reference_is_the_model_without_it(tmp_path: Path) -> None:
    packed, model = PackedPairs(make_pairs(8), 40, 0), make_model()
    expected = np.array(reference_log_probs(Policy(model), packed, tmp_path / "model", LOOP))
    policy = Policy(model, TrainableLora(model, LoraSection(rank=2)))
    with torch.no_grad():
        for parameter in policy.trained.parameters():
            parameter.add_(0.3)
    assert np.array_equal(reference_log_probs(policy, packed, tmp_path, LOOP), expected)
    (batch,) = pair_batches(packed, None, range(len(packed)), 100)
    with torch.no_grad():
        assert abs(answer_log_probs(policy, batch)[0].numpy() - expected).max() > 0.01


def test_the_source_is_a_function_of_the_step() -> None:
    source = PairSource(PackedPairs(make_pairs(40), 40, 0), None, LOOP)
    first, again = source.micro_batches(3), source.micro_batches(3)
    assert len(first) == LOOP.rows_per_step // LOOP.rows_per_micro_batch
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(first, again, strict=True))
    shares = [PairSource(source.pairs, None, LOOP, rank, 2).micro_batches(3) for rank in range(2)]
    assert sum(len(batch.reference) for share in shares for batch in share) == sum(len(b.reference) for b in first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "hinge"}, "one of sigmoid, ipo, simpo"),
        ({"beta": 0.0}, "above 0"),
        ({"gamma": 0.5}, "simpo"),
        ({"label_smoothing": 0.5}, "below 0.5"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "ipo"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DpoSection(**changes)


CONFIG = """
output = "{folder}/run"
model = "{folder}/base"
[data]
train = "{folder}/pairs.jsonl"
validation_fraction = 0.2
context = 64
cache = "{folder}/cache"
[optimizer]
lr = 5e-3
matrix_lr = 5e-3
warmup_steps = 1
[loop]
steps = 6
rows_per_step = 4
rows_per_micro_batch = 2
evaluate_every = 3
checkpoint_every = 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny base model with the embedded model's tokenizer, preference pairs, and a configuration."""
    save_model(tmp_path / "base", tie_word_embeddings=False)
    lines = [{"prompt": f"add {i}", "chosen": f"return {i}", "rejected": "I do not know"} for i in range(30)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "dpo.toml").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "simpo"])
def test_from_pairs_to_a_model(folder: Path, loss: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "dpo", str(folder / "dpo.toml"), "--set", f"dpo.loss={loss}"]) == 0
    assert capsys.readouterr().out == f"model: {folder / 'run' / 'model'}\n"
    reports = TrainingLog(folder / "run" / "log.jsonl").read()
    first, last = reports[0].metrics, reports[-1].metrics
    assert last["reward_margin"] > first["reward_margin"] + 0.01
    assert last["reward_accuracy"] > 0.9
    assert reports[-1].loss < reports[0].loss
    assert reports[-1].validation is not None
    assert len(list((folder / "run").glob("reference-*.npy"))) == (0 if loss == "simpo" else 2)
    if loss == "sigmoid":
        assert reports[0].loss == pytest.approx(math.log(2), abs=1e-4)
    assert not torch.equal(*(load_model(folder / name).output_embedding for name in ("base", "run/model")))


def test_an_adapter_is_trained_against_the_model_below_it(folder: Path) -> None:
    assert cli.main(["train", "dpo", str(folder / "dpo.toml"), "--set", "lora.rank=4"]) == 0
    reports = TrainingLog(folder / "run" / "log.jsonl").read()
    assert reports[0].loss == pytest.approx(math.log(2), abs=1e-4)
    assert reports[-1].metrics["reward_margin"] > 0.01
    assert (folder / "run" / "adapter" / "adapter_model.safetensors").exists()


def test_a_run_that_was_cut_off_ends_with_the_same_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str, steps: int) -> dict[str, Tensor]:
        config = load_config(DpoConfig, folder / "dpo.toml", [f"output={folder / name}"])
        training = Dpo(config)
        trainer = training.start()
        for report in trainer.run():
            if report.step == steps:
                break
        return {key: value.clone() for key, value in trainer.policy.state_dict().items()}

    whole = run("whole", 6)
    run("cut", 3)
    monkeypatch.setattr(reference, "answer_log_probs", None)  # which is known
    resumed = run("cut", 6)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_would_be_done(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run: Callable[..., int] = cli.main
    assert run(["train", "dpo", str(folder / "dpo.toml"), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"] == 6
    assert plan["context"] == 128  # a row holds both documents of a pair
    assert not (folder / "run").exists()
