"""Exactness for shapes that nobody chose: each seed is a model, packed rows, and all that has to hold of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import peft
import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from codemill.kernels import attention_training, expert_adapter, expert_kernel, training_rows
from codemill.train.adapter import TrainableLora
from codemill.train.balance import Balanced, RouterBalance
from codemill.train.balance_config import BalanceConfig
from codemill.train.lora_config import LoraSection
from codemill.train.objective import CrossEntropy
from codemill.train.policy import Policy
from models.precision import in_fp64
from models.reference import make_ours
from train.random_shapes import Case, gradients, micro_batches, recomputing, worst_difference
from train.test_adapter import gradients as saved_gradients

FEW, MANY = range(5), range(5, 400)
IN_FP64 = (
    1e-6  # of the largest number in a gradient: but for one rounding of what flows to a router, they agree to 1e-12
)
IN_FP32 = 1e-4
_BEYOND = pytest.mark.xfail(reason="a hybrid whose A_log is 1.7e-4 from fp64 in fp32, five times transformers' error")
Check = Callable[[Case, Path], None]


def of_the_reference(case: Case, _: Path) -> None:
    """Loss and gradients are those of `transformers`: in fp64, and in fp32 as near as its own are to those.

    (Outputs of Gated DeltaNet near zero, which its norm magnifies, take some seeds beyond IN_FP32 in both.)
    """
    expected, exact_theirs = in_double(case, reference=True)
    loss, exact = in_double(case, reference=False)
    assert loss == pytest.approx(expected, rel=IN_FP64)
    assert_near(exact, exact_theirs, IN_FP64)
    reference_loss = case.expected_loss()
    limit = max(IN_FP32, 4 * worst_difference(gradients(case.reference), exact)[0])
    for has_kernels in (True, False):
        with kernels(has_kernels):
            assert case.loss(case.model, [case.batch]) == pytest.approx(reference_loss, rel=1e-5)
            assert_near(gradients(case.model), exact, limit)


def in_double(case: Case, reference: bool) -> tuple[float, dict[str, Tensor]]:
    with in_fp64(case.reference if reference else case.model) as network, torch.enable_grad():
        loss = case.expected_loss(network) if reference else case.loss(network, [case.batch])
        return loss, gradients(network)


def assert_near(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], limit: float) -> None:
    worst, name = worst_difference(found, expected)
    assert worst < limit, f"{name}: {worst:.1e}"


def of_documents_apart(case: Case, _: Path) -> None:
    """A packed document computes what it would alone, and does not see what its neighbours are, to the last bit."""
    with in_fp64(case.model) as model:
        logits = case.packed.logits(model)
        for place in case.packed.places:
            alone = model(case.packed.input_ids[place][None])[0]
            torch.testing.assert_close(logits[place], alone, atol=1e-8, rtol=1e-8)
    for autocast in (False, True):
        before, half = losses(case, case.packed.input_ids, autocast), torch.zeros_like(case.packed.input_ids).bool()
        for place in case.packed.places[::2]:
            half |= place
        changed = (case.packed.input_ids + 1) % case.model.config.vocab_size
        after = losses(case, torch.where(half, changed, case.packed.input_ids), autocast)
        assert all(map(torch.equal, before[1::2], after[1::2]))


def losses(case: Case, input_ids: Tensor, autocast: bool) -> list[Tensor]:
    """Of each document, with gradients wanted."""
    packed = type(case.packed)(input_ids, case.packed.position_ids, case.packed.document_ids)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = packed.logits(case.model)
    assert logits.requires_grad
    return packed.losses(logits)


def of_recomputing(case: Case, _: Path) -> None:
    """Gradient checkpointing gives the same bits."""
    for autocast in (False, True):
        loss = case.loss(case.model, [case.batch], autocast)
        expected = gradients(case.model)
        with recomputing(case.model):
            assert case.loss(case.model, [case.batch], autocast) == loss
        found = gradients(case.model)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def of_accumulation(case: Case, _: Path) -> None:
    """A step in micro-batches of one row is the step in one."""
    with in_fp64(case.model) as model, torch.enable_grad():
        loss = case.loss(model, [case.batch])
        expected = gradients(model)
        assert case.loss(model, list(micro_batches(case.batch))) == pytest.approx(loss, rel=IN_FP64)
        assert_near(gradients(model), expected, IN_FP64)


def in_bf16(case: Case, _: Path) -> None:
    """Near to fp32, also the gradients where no expert is chosen otherwise, with the C++ kernels and without."""
    exact = case.loss(case.model, [case.batch])
    expected = gradients(case.model)
    for has_kernels in (True, False):
        with kernels(has_kernels):
            assert case.loss(case.model, [case.batch], autocast=True) == pytest.approx(exact, rel=0.05)
        if case.family == "qwen3":
            for name, gradient in expected.items():
                difference = (gradients(case.model)[name] - gradient).norm()
                assert difference < 0.15 * gradient.norm() + 1e-3, name


@contextmanager
def kernels(on: bool) -> Iterator[None]:
    """With what the C++ library has for training, or without it."""
    with ExitStack() as stack:
        for module in () if on else (attention_training, expert_adapter, expert_kernel, training_rows):
            for name in ("load_cpu_library", "_processor_has_kernel", "_has_amx"):
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, lambda: None))
        yield


def of_balance(case: Case, _: Path) -> None:
    """The balance of experts is the mean over layers of what `transformers` computes of each alone."""
    config = case.model.config
    if config.moe is None or not any(map(config.is_moe_layer, range(config.num_hidden_layers))):
        return
    policy, batch = Policy(case.model), case.batch
    objective = Balanced(CrossEntropy(), RouterBalance(BalanceConfig(coefficient=1.0)))
    found = objective.loss(policy, batch, objective.counts([batch])).metrics["router_loss"]
    with policy.routing() as routing, torch.no_grad():
        policy.hidden_states(batch)
    mask = (batch.document_ids >= 0).long()
    moe = config.moe
    each = [
        load_balancing_loss_func((layer.logits,), moe.num_experts, moe.num_experts_per_tok, mask)
        for layer in routing.values()
    ]
    assert found == pytest.approx(torch.stack(each).mean().item(), rel=1e-4)


def of_adapters(case: Case, directory: Path) -> None:
    """An adapter of all linear layers has PEFT's gradients, as near to fp64 as its own in fp32, and may be merged."""
    adapter = TrainableLora(case.model, LoraSection(rank=3, alpha=7))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in adapter.parameters():
            each.copy_(torch.randn(each.shape, generator=generator) * 0.3)
    adapter.save(directory, "")
    reference = peft.PeftModel.from_pretrained(case.reference, directory, is_trainable=True).eval()
    reference.zero_grad()
    ids = case.packed.input_ids[:1, :33]
    logits, expected = case.model(ids, adapters=[adapter.lora]), reference(ids).logits
    scale = expected.abs().max().item()
    torch.testing.assert_close(logits, expected, atol=1e-4 * scale, rtol=1e-4)
    loss_of(logits).backward()
    found = saved_gradients(adapter, directory / "gradients")
    theirs, exact = adapter_gradients(reference, ids), adapter_gradients(reference.double(), ids)
    assert exact.keys() == found.keys()
    assert_near(found, exact, max(10 * IN_FP32, 4 * worst_difference(theirs, exact)[0]))
    merged = make_ours(reference.float().merge_and_unload())
    torch.testing.assert_close(merged(ids), logits.detach(), atol=1e-4 * scale, rtol=1e-4)


def loss_of(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)[..., 3].mean()


def adapter_gradients(reference: peft.PeftModel, ids: Tensor) -> dict[str, Tensor]:
    reference.zero_grad()
    loss_of(reference(ids).logits).backward()
    return {
        name.replace(".default", ""): each.grad.clone()
        for name, each in reference.named_parameters()
        if each.requires_grad and each.grad is not None
    }


CHECKS: Sequence[Check] = (
    *(of_the_reference, of_documents_apart, of_recomputing, of_accumulation),
    *(in_bf16, of_balance, of_adapters),
)


@pytest.mark.parametrize("seed", FEW)
def test_of_a_few(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [pytest.param(seed, marks=_BEYOND if seed == 122 else ()) for seed in MANY])
def test_of_many(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


def check(seed: int, directory: Path) -> None:
    for each in CHECKS:
        each(Case.draw(seed), directory / each.__name__)
