"""Distillation: what it minimises against whole logits, samples, teachers by domain, and runs to a model."""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codemill import cli
from codemill.chat import Tokenizer
from codemill.data.packing import Document
from codemill.errors import UsageError
from codemill.models import CausalLM
from codemill.train.config_file import load_config
from codemill.train.distill import Distill
from codemill.train.distill_config import DistillConfig, DistillSection
from codemill.train.distillation import Distillation
from codemill.train.log import TrainingLog
from codemill.train.losses import policy_gradient, reverse_kl
from codemill.train.policy import Policy
from codemill.train.sampling import AnswerSampler, answer_seeds
from codemill.train.taught_batches import TaughtDocuments
from train.conftest import VOCAB_SIZE, make_model, save_model

SETTINGS = {"teachers": {"default": "a", "web": "b"}}


def make_teacher(seed: int) -> CausalLM:
    """A model with opinions: logits of a spread of about 1."""
    model = make_model(seed)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(12)
    return model.requires_grad_(False)


def make_documents(count: int, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 16, count)
    return [Document.of(rng.integers(0, VOCAB_SIZE, n), rng.choice([0.0, 0.5, 1.0], n)) for n in lengths]


def divergence(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    """By torch's own functions, from logits [n, V] -> [n]."""
    p, q = student.log_softmax(-1), teacher.log_softmax(-1)
    if name == "reverse_kl":
        return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    if name == "forward_kl":
        return F.kl_div(p, q, reduction="none", log_target=True).sum(-1)
    m = (0.5 * p.exp() + 0.5 * q.exp()).log()
    both = [F.kl_div(m, each, reduction="none", log_target=True).sum(-1) for each in (p, q)]
    return 0.5 * both[0] + 0.5 * both[1]


def expected_loss(
    settings: DistillSection, student: CausalLM, teachers: Sequence[CausalLM], which: list[int]
) -> Tensor:
    """Each document alone, from whole logits."""
    total, weight = torch.zeros(()), 0.0
    for document, index in zip(make_documents(len(which)), which, strict=True):
        ids, weights = torch.from_numpy(document.ids.astype(np.int64)), torch.from_numpy(document.weights)[1:]
        logits, theirs = (model(ids[None])[0, :-1] for model in (student, teachers[index]))
        losses = divergence(settings.loss, logits, theirs)
        cross_entropy = F.cross_entropy(logits, ids[1:], reduction="none")
        total = total + (weights * (losses + settings.cross_entropy_weight * cross_entropy)).sum()
        weight += weights.sum().item()
    return total / weight


@pytest.mark.parametrize("size", [2, 100])
@pytest.mark.parametrize("loss", ["reverse_kl", "forward_kl", "jensen_shannon"])
def test_the_loss_is_the_divergence_from_each_documents_own_teacher(loss: str, size: int) -> None:
    """Packed, in several micro-batches, with two teachers, and with cross entropy beside it."""
    settings = DistillSection(**SETTINGS, loss=loss, on_policy=False, cross_entropy_weight=0.3)
    student, teachers = make_model(0), [make_teacher(1), make_teacher(2)]
    which = [settings.index("web" if i % 3 == 0 else "other") for i in range(20)]
    rows = TaughtDocuments(make_documents(20), which, 24, 0)
    assert len(rows) < 20
    assert all(len({which[i] for i in members}) == 1 for members in rows.bins)
    batches = rows.batches(range(len(rows)), size)
    objective = Distillation(teachers, settings)
    totals = objective.counts(batches)
    parts = [objective.loss(Policy(student), batch, totals) for batch in batches]
    value, expected = (
        torch.stack([part.value for part in parts]).sum(),
        expected_loss(settings, student, teachers, which),
    )
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    metrics = {name: sum(part.metrics[name] for part in parts) for name in parts[0].metrics}
    assert metrics[loss] + 0.3 * metrics["cross_entropy"] == pytest.approx(value.item(), rel=1e-5)
    parameters = list(student.parameters())
    gradients, theirs = (torch.autograd.grad(each, parameters) for each in (value, expected))
    torch.testing.assert_close(gradients, theirs, rtol=1e-4, atol=1e-6)


def test_a_batch_takes_one_pass_of_each_of_its_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DistillSection(**SETTINGS)
    teachers = [make_teacher(1), make_teacher(2)]
    passes: list[int] = []
    for index, teacher in enumerate(teachers):
        monkeypatch.setattr(teacher, "compute", lambda *a, i=index, f=teacher.compute: passes.append(i) or f(*a))
    rows = TaughtDocuments(make_documents(9), [0] * 6 + [1] * 3, 24, 0)
    both, first = rows.batches(range(len(rows)), 100)[0], rows.batches([0], 1)[0]
    for batch, expected in ((both, [0, 1]), (first, [0])):
        passes.clear()
        objective = Distillation(teachers, settings)
        objective.loss(Policy(make_model()), batch, objective.counts([batch]))
        assert passes == expected


def test_the_gradient_of_sampled_tokens_is_in_expectation_that_of_the_whole_divergence() -> None:
    """The expectation is taken over all 3 ** 4 samples of four tokens from a vocabulary of three."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator).requires_grad_()
    teacher = torch.randn(4, 3, generator=generator).log_softmax(-1)
    weights = torch.tensor([1.0, 0.5, 2.0, 0.0])
    expected = torch.autograd.grad(reverse_kl(logits, teacher) @ weights, logits)[0]
    total, places = torch.zeros(4, 3), torch.arange(4)
    for sample in itertools.product(range(3), repeat=4):
        tokens = torch.tensor(sample)
        log_probs = logits.log_softmax(-1)[places, tokens]
        advantages = teacher[places, tokens] - log_probs.detach()
        loss = policy_gradient(log_probs, log_probs.detach(), advantages, weights).value
        total += log_probs.detach().sum().exp() * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(total, expected)


def test_sampled_tokens_are_taught_by_the_difference_of_log_probabilities() -> None:
    settings = DistillSection(**SETTINGS, loss="sampled_reverse_kl")
    student, teacher = make_model(0), make_teacher(1)
    rows = TaughtDocuments(make_documents(6), [0] * 6, 24, 0)
    (batch,) = rows.batches(range(len(rows)), 100)
    objective = Distillation([teacher], settings)
    part = objective.loss(Policy(student), batch, objective.counts([batch]))
    estimate, surrogate, weight = 0.0, torch.zeros(()), 0.0
    for document in make_documents(6):
        ids, weights = torch.from_numpy(document.ids.astype(np.int64)), torch.from_numpy(document.weights)[1:]
        both = (model(ids[None])[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0] for model in (student, teacher))
        ours, theirs = both
        estimate += (weights * (ours - theirs)).sum().item()
        surrogate = surrogate + (weights * (ours.detach() - theirs) * ours).sum()
        weight += weights.sum().item()
    assert part.metrics["reverse_kl"] == pytest.approx(estimate / weight, rel=1e-5)
    parameters = list(student.parameters())
    gradients = [torch.autograd.grad(each, parameters) for each in (part.value, surrogate / weight)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": {}}, "no teacher"),
        ({"loss": "kl"}, "one of reverse_kl"),
        ({"loss": "sampled_reverse_kl", "on_policy": False}, "needs on_policy"),
        ({"cross_entropy_weight": 1.0}, "on_policy = false"),
        ({"beta": 1.0}, "between 0 and 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"loss": "sampled_reverse_kl", "temperature": 0.7}, "needs temperature = 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DistillSection(**{**SETTINGS, **changes})


def test_a_domain_without_a_teacher_is_an_error() -> None:
    assert DistillSection(**SETTINGS).index("sql") == 0
    with pytest.raises(UsageError, match=r"'sql'.*add it, or a default"):
        DistillSection(teachers={"web": "b"}).index("sql")


CONFIG = """
output = "{folder}/run"
model = "{folder}/student"
[data]
train = "{folder}/train.jsonl"
context = 64
cache = "{folder}/cache"
[distill]
max_new_tokens = 12
[distill.teachers]
default = "{folder}/teacher"
web = "{folder}/web"
[optimizer]
lr = 2e-2
matrix_lr = 2e-2
warmup_steps = 1
[loop]
steps = 6
rows_per_step = 6
rows_per_micro_batch = 2
checkpoint_every = 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A student without opinions, two teachers with some, and conversations of two domains."""
    save_model(tmp_path / "student", 0, 1.0)
    save_model(tmp_path / "teacher", 1, 20.0)
    save_model(tmp_path / "web", 2, 20.0)
    lines = [
        {
            "messages": [{"role": "user", "content": f"add {i}"}, {"role": "assistant", "content": f"return {i} + 1"}],
            **({"domain": "web"} if i % 3 == 0 else {}),
        }
        for i in range(30)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "distill.toml").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path


def run(folder: Path, *settings: str) -> int:
    options = [word for setting in settings for word in ("--set", setting)]
    return cli.main(["train", "distill", str(folder / "distill.toml"), *options])


def test_a_student_approaches_its_teachers_in_its_own_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "loop.steps=25") == 0
    assert capsys.readouterr().out == f"model: {folder / 'run' / 'model'}\n"
    reports = TrainingLog(folder / "run" / "log.jsonl").read()
    divergences = [report.metrics["reverse_kl"] for report in reports]
    assert np.mean(divergences[-3:]) < 0.8 * np.mean(divergences[:3])


def test_sampled_tokens_bring_a_student_near_its_teacher_too() -> None:
    """One token after each token of the vocabulary; the divergence is measured exactly."""
    student, teacher = make_teacher(1).requires_grad_(True), make_teacher(2)
    objective = Distillation([teacher], DistillSection(**SETTINGS, loss="sampled_reverse_kl"))
    contexts, generator = torch.arange(VOCAB_SIZE).repeat(8), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(student.parameters(), 1e-2)

    def distance() -> float:
        ids = torch.arange(VOCAB_SIZE)[:, None]
        with torch.no_grad():
            return reverse_kl(student(ids)[:, 0], teacher(ids)[:, 0]).mean().item()

    before = distance()
    for _ in range(40):
        with torch.no_grad():
            chosen = student(contexts[:, None])[:, 0].softmax(-1).multinomial(1, generator=generator)[:, 0]
        pairs = zip(contexts.tolist(), chosen.tolist(), strict=True)
        documents = [Document.of(pair, [0.0, 1.0]) for pair in pairs]
        rows = TaughtDocuments(documents, [0] * len(documents), 2, 0)
        (batch,) = rows.batches(range(len(rows)), len(rows))
        objective.loss(Policy(student), batch, objective.counts([batch])).value.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert distance() < 0.5 * before


def test_a_student_approaches_its_teachers_in_given_answers(folder: Path) -> None:
    settings = ("distill.on_policy=false", "distill.loss=forward_kl", "loop.steps=30", "loop.rows_per_step=4")
    assert run(folder, *settings, f"data.validation={folder / 'train.jsonl'}") == 0
    reports = TrainingLog(folder / "run" / "log.jsonl").read()
    assert reports[-1].loss < 0.6 * reports[0].loss
    assert reports[-1].validation == {"validation": pytest.approx(reports[-1].loss, rel=0.3)}


def test_an_adapter_answers_and_learns(folder: Path) -> None:
    assert run(folder, "lora.rank=4", "loop.steps=3") == 0
    assert (folder / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert len(TrainingLog(folder / "run" / "log.jsonl").read()) == 3


def test_a_run_that_was_cut_off_ends_with_the_same_bits(folder: Path) -> None:
    def train(name: str, steps: int) -> dict[str, Tensor]:
        trainer = Distill(load_config(DistillConfig, folder / "distill.toml", [f"output={folder / name}"])).start()
        for report in trainer.run():
            if report.step == steps:
                break
        return {key: value.clone() for key, value in trainer.policy.state_dict().items()}

    whole = train("whole", 6)
    train("cut", 3)
    resumed = train("cut", 6)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_answers_are_those_of_the_policy_and_depend_on_their_seeds() -> None:
    from codemill.models import load_model

    model, tokenizer = load_model(None, "float32"), Tokenizer.load(None)
    prompts, seeds = [[100, 200, 300], [17, 18]], answer_seeds(0, 3, [5, 9])
    sampler = AnswerSampler(Policy(model), tokenizer, 64)
    sampled = [sampler.answers(prompts, seeds, 8, 1.0) for _ in range(2)]
    assert sampled[0] == sampled[1]
    assert all(1 <= len(answer) <= 8 for answer in sampled[0])
    other = sampler.answers(prompts, answer_seeds(0, 4, [5, 9]), 8, 1.0)
    assert other != sampled[0]
    cold = sampler.answers(prompts[:1], seeds[:1], 4, 1e-4)[0]
    ids = list(prompts[0])
    for token in cold:  # at so low a temperature it is the likeliest
        assert model(torch.tensor([ids]))[0, -1].argmax() == token
        ids.append(token)


def test_an_engine_that_was_used_before_answers_as_a_new_one_with_the_weights_as_they_are() -> None:
    from codemill.models import load_model
    from codemill.train.lora_config import LoraSection
    from codemill.train.lora_policy import load_lora_policy

    tokenizer = Tokenizer.load(None)
    prompts, seeds = [list(range(100, 150)), list(range(100, 140))], answer_seeds(0, 3, [5, 9])
    policies = Policy(load_model(None, "float32", trainable=True)), load_lora_policy(None, LoraSection(), "float32")
    for policy in policies:
        used = AnswerSampler(policy, tokenizer, 128)
        before = used.answers(prompts, seeds, 16, 1.0)
        with torch.no_grad():
            for parameter in policy.trained.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)
        after = used.answers(prompts, seeds, 16, 1.0)
        assert after == AnswerSampler(policy, tokenizer, 128).answers(prompts, seeds, 16, 1.0)
        assert after != before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("distill.teachers.web={folder}/small", "small has 4,000 tokens, .*student 4,096: a teacher must share"),
        ("data.context=4", r"train.jsonl:1: \d+ tokens and an answer, but the context is 4"),
        ('distill.teachers={web = "{folder}/web"}', r"train.jsonl:2: the data has the domain '', but .* web: add it"),
        ("data.validation_fraction=0.1", "validation"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(
    folder: Path, setting: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(folder / "small", 0, 1.0, vocab_size=4000)
    assert run(folder, setting.replace("{folder}", str(folder))) != 0
    captured = capsys.readouterr().err
    assert len(captured.strip().splitlines()) == 1
    assert re.search(message, captured)


def test_a_teacher_whose_ids_mean_other_tokens_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "web" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))
    assert run(folder) == 2
    assert "token 0 is" in capsys.readouterr().err


def test_what_would_be_done(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "distill", str(folder / "distill.toml"), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"] == 6
    assert plan["memory"]["teachers"] > 0
