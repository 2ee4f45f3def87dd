"""Adapters that are trained compute what `peft` computes, gradients too, and are saved as it saves them."""

from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from codemill.errors import UsageError
from codemill.models import CausalLM
from codemill.models.dora import weight_of
from codemill.models.lora import LoraAdapter
from codemill.train.adapter import TrainableLora
from codemill.train.batch import Batch
from codemill.train.loop import Trainer
from codemill.train.lora_config import LoraSection
from codemill.train.lora_policy import planned_policy
from codemill.train.objective import CrossEntropy
from codemill.train.policy import Policy
from codemill.train.source import PackedSource
from codemill.train.trainable_share import format_share, trainable_share
from models.adapters import random_ids
from models.precision import in_fp64
from models.reference import make_ours, make_reference
from train.conftest import LOOP, OPTIMIZER, make_model, make_rows

CASES: dict[str, tuple[str, LoraSection]] = {
    "dense": ("qwen3", LoraSection(rank=3, alpha=7)),
    "rslora": ("qwen3", LoraSection(rank=3, alpha=7, rslora=True)),
    "patterns": (
        "qwen3",
        LoraSection(
            *(3, 7),
            rank_pattern={"q_proj": 5, r"layers\.1\.self_attn\.v_proj": 2},
            alpha_pattern={"o_proj": 3},
        ),
    ),
    "dora": ("qwen3", LoraSection(rank=3, alpha=7, dora=True)),
    "dora-head": ("qwen3", LoraSection(rank=3, alpha=7, dora=True, rslora=True, targets=("lm_head", "v_proj"))),
    "dora-bias": ("qwen3", LoraSection(rank=3, alpha=7, dora=True)),
    "dora-moe": ("qwen3_moe", LoraSection(rank=3, alpha=7, dora=True, targets=("k_proj", "o_proj"))),
    "dora-hybrid": ("qwen3_next", LoraSection(rank=3, alpha=7, dora=True, targets=("in_proj_qkvz", "out_proj"))),
    "head-and-embedding": ("qwen3", LoraSection(rank=3, alpha=7, targets=("lm_head", "embed_tokens", "q_proj"))),
    "moe": ("qwen3_moe", LoraSection(rank=3, alpha=7)),
    "moe-experts": ("qwen3_moe", LoraSection(rank=3, alpha=7, targets=("experts",), rank_pattern={"down_proj": 2})),
    "hybrid": ("qwen3_next", LoraSection(rank=3, alpha=7)),
    "hybrid-gates": (
        "qwen3_next",
        LoraSection(
            *(3, 7),
            targets=("shared_expert_gate", "in_proj_ba", "experts", "router"),
            rank_pattern={"gate": 2},
        ),
    ),
}  # fmt: skip


def make(
    family: str, section: LoraSection, dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[CausalLM, TrainableLora]:
    """A model and an adapter with random A and B."""
    model = make_ours(make_reference(family, **changes)).to(dtype)
    adapter = TrainableLora(model, section)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in adapter.each:
            for parameter in (each.a, each.b):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if each.magnitude is not None:
                each.magnitude.mul_(1 + 0.3 * torch.rand(each.magnitude.shape, generator=generator))
    return model, adapter


@pytest.mark.parametrize("case", CASES)
def test_saved_adapters_are_those_of_peft(case: str, tmp_path: Path) -> None:
    """`peft` loads one into the reference: the same logits, and of a loss the same gradients."""
    family, section = CASES[case]
    changes = {"attention_bias": True} if case == "dora-bias" else {}
    model, adapter = make(family, section, **changes)
    adapter.save(tmp_path, "some/model")
    reference = peft.PeftModel.from_pretrained(make_reference(family, **changes), tmp_path, is_trainable=True).eval()
    input_ids = random_ids(model, 2, 33)

    ours = model(input_ids, adapters=[adapter.lora] * 2)
    theirs = reference(input_ids).logits
    assert (ours - model(input_ids)).abs().max() > 0.1, "an adapter this weak would hide mistakes"
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)

    ours.log_softmax(-1)[..., 3].mean().backward()
    theirs.log_softmax(-1)[..., 3].mean().backward()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    expected = {
        name.replace(".default", "").replace("vector.weight", "vector"): each.grad
        for name, each in reference.named_parameters()
        if each.requires_grad
    }
    found = gradients(adapter, tmp_path / "gradients")
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        limit = 1e-4 * expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], atol=limit, rtol=1e-4, msg=name)


def gradients(adapter: TrainableLora, directory: Path) -> dict[str, torch.Tensor]:
    """By the names that the file gives the parameters."""
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(parameter.grad)
    adapter.save(directory, "")
    return load_file(directory / "adapter_model.safetensors")


@pytest.mark.parametrize("case", ["rslora", "dora", "moe", "hybrid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_serving_computes_what_training_does(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """To the last bit; and so does an adapter that is trained on, at its start."""
    family, section = CASES[case]
    model, adapter = make(family, section, dtype)
    adapter.save(tmp_path, "")
    loaded = LoraAdapter.load(tmp_path, model.config, dtype, weights=partial(weight_of, model))
    input_ids = random_ids(model, 1, 21)
    trained = model(input_ids, adapters=[adapter.lora])
    assert torch.equal(trained, model(input_ids, adapters=[loaded]))
    continued = TrainableLora(model, LoraSection(init_from=str(tmp_path)))
    assert torch.equal(trained, model(input_ids, adapters=[continued.lora]))
    continued.save(tmp_path / "continued", "")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "continued" / file).read_bytes() == (tmp_path / file).read_bytes()


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "qwen3_next"])
def test_gradients_are_those_of_finite_differences(family: str) -> None:
    model, adapter = make(family, LoraSection(rank=2, targets=("all-linear", "lm_head", "embed_tokens")))
    adapter.double()
    adapter._dtype = torch.float64
    input_ids = random_ids(model, 1, 9)
    names, parameters = zip(*adapter.named_parameters(), strict=True)
    generator = torch.Generator().manual_seed(2)

    with in_fp64(model) as double:

        def loss() -> torch.Tensor:
            return double(input_ids, adapters=[adapter.lora]).logsumexp(-1).square().mean()

        with torch.enable_grad():
            loss().backward()
        for name, parameter in zip(names, parameters, strict=True):
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            losses = [loss().item() for step in (1e-6, -2e-6) if parameter.add_(direction, alpha=step) is not None]
            parameter.add_(direction, alpha=1e-6)
            found = (parameter.grad * direction).sum().item()
            assert found == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-7), name


def test_without_gradients_there_is_no_dropout() -> None:
    """And with them, the same seed drops the same."""
    model, adapter = make("qwen3_moe", LoraSection(rank=3, dropout=0.5))
    _, without = make("qwen3_moe", LoraSection(rank=3))
    input_ids = random_ids(model, 1, 20)
    with torch.no_grad():
        expected = model(input_ids, adapters=[without.lora])
        assert torch.equal(model(input_ids, adapters=[adapter.lora]), expected)
    dropped = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        dropped.append(model(input_ids, adapters=[adapter.lora]))
    assert torch.equal(dropped[0], dropped[1])
    assert (dropped[0] - dropped[2]).abs().max() > 0.01


def test_dropout_leaves_the_mean() -> None:
    """Of an update of the head, on which the logits depend linearly."""
    model, adapter = make("qwen3", LoraSection(rank=3, dropout=0.25, targets=("lm_head",)))
    input_ids = random_ids(model, 1, 5).expand(2000, -1)
    with torch.no_grad():
        expected = model(input_ids[:1], adapters=[adapter.lora])
    found = model(input_ids, adapters=[adapter.lora] * len(input_ids)).detach()
    assert (found[0] - found[1]).abs().max() > 0.01
    error = (found.mean(0) - expected[0]).abs() / (found.std(0) / len(found) ** 0.5)
    assert error.max() < 5


def test_recomputed_layers_drop_the_same(tmp_path: Path) -> None:
    model, adapter = make("qwen3_moe", LoraSection(rank=3, dropout=0.5))
    gradients = []
    for recompute in (False, True):
        model.recompute = recompute
        adapter.zero_grad()
        torch.manual_seed(1)
        model(random_ids(model, 1, 20), adapters=[adapter.lora]).square().mean().backward()
        gradients.append([parameter.grad for parameter in adapter.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_changes_nothing_at_first(dora: bool) -> None:
    """To the last bit, so that the reference of a preference loss is the policy's start."""
    model = make_ours(make_reference("qwen3"))
    policy = Policy(model, TrainableLora(model, LoraSection(dora=dora, targets=("all-linear", "lm_head"))))
    batch = make_batch(model)
    hidden = policy.hidden_states(batch)
    with policy.reference(), torch.no_grad():
        reference = policy.hidden_states(batch)
        assert torch.equal(hidden, reference)
        expected = policy.logits(reference[0])
    assert torch.equal(policy.logits(hidden[0]), expected)
    assert policy.head_weight is None


def make_batch(model: CausalLM) -> Batch:
    input_ids = random_ids(model, 2, 12)
    documents = torch.tensor([[0] * 7 + [1] * 5, [2] * 12])
    positions = torch.tensor([[*range(7), *range(5)], [*range(12)]])
    return Batch(input_ids, positions, documents, torch.ones(2, 12))


def test_only_the_adapter_learns(tmp_path: Path) -> None:
    """A step lowers the loss, and leaves the model's weights as they are."""
    model = make_ours(make_reference("qwen3_moe"))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    policy = Policy(model, TrainableLora(model, LoraSection(rank=4)))
    assert len(list(policy.trained.parameters())) == len(list(policy.adapter.parameters()))
    batch, objective = make_batch(model), CrossEntropy()
    optimizer = torch.optim.AdamW(policy.trained.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = objective.loss(policy, batch, objective.counts([batch])).value
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.5
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("qwen3_moe", {"targets": ("gate_proj",)}, "this model has no 'gate_proj'; it has embed_tokens, q_proj,"),
        ("qwen3", {"targets": ("experts",)}, "this model has no 'experts'"),
        ("qwen3_moe", {"dora": True}, "there is no DoRA of experts in this model: set lora.targets"),
        ("qwen3_next", {"dora": True, "targets": ("gate_proj", "q_proj")}, "no DoRA of gate_proj"),
        ("qwen3", {"dora": True, "targets": ("embed_tokens",)}, "no DoRA of embed_tokens"),
        ("qwen3", {"rank_pattern": {"q_prj": 3}}, "rank_pattern: 'q_prj' fits the end of no name"),
        ("qwen3", {"targets": ("q_proj",), "alpha_pattern": {"v_proj": 3}}, "such as model.layers.0.self_attn.q_proj"),
    ],
)
def test_targets_that_cannot_be(family: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainableLora(make_ours(make_reference(family)), LoraSection(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank = 0"),
        ({"rank_pattern": {"q_proj": 0}}, "q_proj = 0"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"alpha": 0.0}, "alpha = 0.0"),
        ({"rank_pattern": {"(": 3}}, "rank_pattern: '\\(' is no regular expression"),
        ({"targets": ()}, "targets is empty"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LoraSection(**settings)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "qwen3_next"])
def test_the_trainable_share_counts_every_parameter_once(family: str) -> None:
    model, adapter = make(family, LoraSection(rank=3))
    *rows, total = trainable_share(Policy(model, adapter))
    assert total.parameters == sum(row.parameters for row in rows) == sum(each.numel() for each in model.parameters())
    assert total.trainable == sum(row.trainable for row in rows) == sum(each.numel() for each in adapter.parameters())
    by_name = {row.name: row for row in rows}
    assert "other" not in by_name
    assert by_name["norms"].trainable == by_name["head"].trainable == 0
    if family != "qwen3":
        assert by_name["experts"].trainable == model.config.num_hidden_layers * 8 * 3 * (32 + 48 + 24 + 32)
        assert by_name["router"].trainable == 0
    planned = planned_policy(model.config, LoraSection(rank=3))
    assert trainable_share(planned) == [*rows, total]
    assert "experts" not in format_share(rows) or family != "qwen3"


def test_experts_of_packed_documents_have_dropout() -> None:
    """The path for packed documents computes experts by hand, and knows none."""
    model, adapter = make("qwen3_moe", LoraSection(rank=3, dropout=0.5, targets=("experts",)))
    policy, batch = Policy(model, adapter), make_batch(model)
    with torch.no_grad():
        expected = policy.hidden_states(batch)
    torch.manual_seed(1)
    assert (policy.hidden_states(batch) - expected).abs().max() > 0.01


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_next"])
def test_experts_are_saved_one_by_one_where_asked(family: str, tmp_path: Path) -> None:
    """In the names that vLLM's Qwen3-MoE expects; what they add is the same, here and in PEFT."""
    patterns = {"down_proj": 5, "experts.gate_up_proj": 2} if family == "qwen3_next" else {}
    model, adapter = make(family, LoraSection(rank=3, alpha=7, per_expert=True, rank_pattern=patterns))
    adapter.save(tmp_path, "")
    names = set(load_file(tmp_path / "adapter_model.safetensors"))
    for name in ("gate_proj", "up_proj", "down_proj"):
        assert f"base_model.model.model.layers.1.mlp.experts.7.{name}.lora_B.weight" in names
    assert not any("experts.lora" in name or "base_layer" in name for name in names)
    input_ids = random_ids(model, 1, 20)
    stored = LoraAdapter.load(tmp_path, model.config, torch.float32)
    with torch.no_grad():
        expected = model(input_ids, adapters=[adapter.lora])
        assert (expected - model(input_ids)).abs().max() > 0.1
        torch.testing.assert_close(model(input_ids, adapters=[stored]), expected, atol=1e-4, rtol=1e-4)
        if family == "qwen3_moe":
            reference = peft.PeftModel.from_pretrained(make_reference(family), tmp_path).eval()
            torch.testing.assert_close(reference(input_ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_run_with_dropout_is_the_same_run_again_stopped_or_not(tmp_path: Path) -> None:
    def trainer(name: str) -> Trainer:
        model = make_model().requires_grad_(False)
        policy = Policy(model, TrainableLora(model, LoraSection(rank=2, dropout=0.5)))
        return Trainer(policy, CrossEntropy(), PackedSource(make_rows(30), LOOP), {}, LOOP, OPTIMIZER, tmp_path / name)

    reports = [list(trainer(name).run()) for name in ("one", "other")]
    stopped = trainer("stopped").run()
    first = [next(stopped) for _ in range(4)]
    stopped.close()
    torch.manual_seed(5)
    reports.append([*first, *trainer("stopped").run()])
    losses = [[report.loss for report in each] for each in reports]
    assert losses[0] == losses[1] == losses[2]
    assert len(set(losses[0])) == LOOP.steps
