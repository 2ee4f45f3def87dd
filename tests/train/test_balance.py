"""The balance of the experts: its loss against `transformers`, over a whole step, and what is reported."""

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from codemill.kernels.experts import Routing, RoutingLog
from codemill.models import CausalLM
from codemill.train.balance import (
    Balanced,
    RouterBalance,
    balance_loss,
    expert_counts,
    load_metrics,
    z_loss,
)
from codemill.train.balance_config import BalanceConfig
from codemill.train.batch import Batch
from codemill.train.objective import CrossEntropy
from codemill.train.policy import Policy
from models.reference import make_ours, make_reference
from train.packed import Packed

TOP_K, EXPERTS = 2, 8


def draw(num_tokens: int, seed: int = 0) -> Routing:
    logits = torch.randn(num_tokens, EXPERTS, generator=torch.Generator().manual_seed(seed)) * 2
    return Routing(logits.requires_grad_(), logits.topk(TOP_K).indices)


def loss_of(routing: Routing, is_token: Tensor) -> Tensor:
    tokens = float(is_token.sum())
    return balance_loss(routing, is_token, expert_counts(routing, is_token) / tokens, tokens)


def test_one_layer_equals_transformers() -> None:
    routing, is_token = draw(50), torch.arange(50) % 7 != 0  # the others are padding
    ours = loss_of(routing, is_token)
    expected = load_balancing_loss_func((routing.logits,), EXPERTS, TOP_K, is_token[None])
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(loss, routing.logits)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients)
    assert (gradients[0][~is_token] == 0).all()


def test_each_layer_is_balanced_by_itself() -> None:
    """Two layers, of which each uses the half of the experts that the other does not: together they look balanced."""
    logits = torch.zeros(40, EXPERTS)
    logits[:, : EXPERTS // 2] = 20
    halves = [logits + torch.randn(40, EXPERTS), logits.flip(1) + torch.randn(40, EXPERTS)]
    routings = {f"model.layers.{i}.mlp": Routing(x, x.topk(TOP_K).indices) for i, x in enumerate(halves)}
    everywhere = torch.ones(40, dtype=torch.bool)
    ours = RouterBalance(BalanceConfig(coefficient=1.0)).loss(routings, everywhere, 40.0)
    theirs = load_balancing_loss_func(tuple(halves), EXPERTS, TOP_K)
    assert float(ours) == pytest.approx(float(sum(loss_of(each, everywhere) for each in routings.values()) / 2))
    assert float(theirs) < TOP_K * 1.1
    assert float(ours) > TOP_K * 1.8


def test_micro_batches_use_the_counts_of_the_step_so_far() -> None:
    parts = [draw(30, seed) for seed in range(3)]
    everywhere, balance = torch.ones(30, dtype=torch.bool), RouterBalance(BalanceConfig(coefficient=1.0))
    balance.begin_step()
    counts = torch.zeros(EXPERTS, dtype=torch.float64)
    for number, part in enumerate(parts, start=1):
        counts += expert_counts(part, everywhere)
        expected = balance_loss(part, everywhere, counts / (30 * number), 90.0)
        torch.testing.assert_close(balance.loss({"model.layers.0.mlp": part}, everywhere, 90.0), expected)
    balance.begin_step()
    torch.testing.assert_close(balance.loss({"a": parts[0]}, everywhere, 30.0), loss_of(parts[0], everywhere))


def test_z_loss_by_hand() -> None:
    routing = draw(5)
    is_token = torch.tensor([True, True, False, True, True])
    expected = routing.logits.exp().sum(-1).log().square()[is_token].mean()
    torch.testing.assert_close(z_loss(routing, is_token, 4.0), expected)


def test_metrics_by_hand() -> None:
    counts = {"model.layers.0.mlp": torch.tensor([4.0, 4, 4, 4]), "model.layers.3.mlp": torch.tensor([8.0, 8, 0, 0])}
    metrics = load_metrics(counts, {"model.layers.3.mlp": 2})
    assert (metrics["router/0/load"], metrics["router/3/load"], metrics["router/load"]) == (1.0, 2.0, 2.0)
    assert metrics["router/0/entropy"] == pytest.approx(1.0)
    assert metrics["router/3/entropy"] == metrics["router/entropy"] == pytest.approx(0.5)
    assert (metrics["router/0/dead"], metrics["router/3/dead"], metrics["router/dead"]) == (0, 2, 2)


def test_an_expert_is_dead_after_steps_without_tokens() -> None:
    logits = torch.zeros(6, 4)
    logits[:, :2] = 5
    balance = RouterBalance(BalanceConfig(dead_after=3))
    dead = []
    for step in range(5):
        balance.begin_step()
        used = logits if step < 4 else logits.flip(1)
        balance.loss({"model.layers.0.mlp": Routing(used, used.topk(2).indices)}, torch.ones(6, dtype=torch.bool), 6.0)
        dead.append(balance.finish_step()["router/0/dead"])
    assert dead == [0, 0, 2, 2, 0]
    other = RouterBalance(BalanceConfig(dead_after=3))
    other.load_state(balance.state())
    assert other.state()["model.layers.0.mlp"].tolist() == [1, 1, 0, 0]


@pytest.fixture
def model() -> CausalLM:
    return make_ours(make_reference("qwen3_moe", num_hidden_layers=3)).requires_grad_(True).train()


def batch_of(packed: Packed) -> Batch:
    weights = (packed.position_ids > 0).float() * (packed.document_ids >= 0)
    return Batch(packed.input_ids, packed.position_ids, packed.document_ids, weights)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_objective_adds_the_loss_of_all_layers(model: CausalLM, recompute: bool) -> None:
    """With recomputation too, where every layer is computed twice."""
    model.recompute = recompute
    policy, batch = Policy(model), batch_of(Packed.draw())
    results = []
    for coefficient in (0.0, 0.5):
        objective = Balanced(CrossEntropy(), RouterBalance(BalanceConfig(coefficient)))
        totals = objective.counts([batch])
        assert totals["router_tokens"] == batch.num_tokens == int((batch.document_ids >= 0).sum())
        loss = objective.loss(policy, batch, totals)
        loss.value.backward()
        metrics = objective.finish_step()
        gradient = model.model.layers[1].mlp.gate.weight.grad.clone()
        model.zero_grad()
        results.append((loss, metrics, gradient))
    (plain, metrics, first), (balanced, same, second) = results
    assert metrics == same
    assert len(metrics) == 3 * 3 + 3
    logged = model_routing(model, batch)
    is_token = (batch.document_ids >= 0).flatten()
    expected = sum(loss_of(each, is_token) for each in logged.values()) / 3 * 0.5
    torch.testing.assert_close(balanced.value - plain.value, expected, rtol=1e-4, atol=1e-5)
    assert balanced.metrics["router_loss"] == pytest.approx(float(expected), rel=1e-4)
    assert not torch.equal(first, second)


def model_routing(model: CausalLM, batch: Batch) -> dict[str, Routing]:
    routing = RoutingLog()
    model.hidden_states(batch.input_ids, None, batch.position_ids, batch.document_ids, routing=routing)
    assert list(routing) == [f"model.layers.{index}.mlp" for index in range(3)]
    return routing


def test_recomputation_changes_no_gradient(model: CausalLM) -> None:
    batch, gradients = batch_of(Packed.draw()), []
    for recompute in (False, True):
        model.recompute = recompute
        objective = Balanced(CrossEntropy(), RouterBalance(BalanceConfig(0.5, z_coefficient=0.1)))
        objective.loss(Policy(model), batch, objective.counts([batch])).value.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        model.zero_grad()
    assert all(torch.equal(gradients[0][name], gradient) for name, gradient in gradients[1].items())


def test_validation_counts_nothing(model: CausalLM) -> None:
    batch = batch_of(Packed.draw())
    objective = Balanced(CrossEntropy(), RouterBalance(BalanceConfig(0.5)))
    with torch.no_grad():
        totals = objective.counts([batch])
        loss = objective.loss(Policy(model), batch, totals)
        torch.testing.assert_close(loss.value, CrossEntropy().loss(Policy(model), batch, totals).value)
    assert objective.finish_step() == {}
