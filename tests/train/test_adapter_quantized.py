"""Adapters on a frozen model that is quantised (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from codemill.errors import UsageError
from codemill.kernels import quantized_linear
from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.linear import Linear
from codemill.kernels.low_rank import AdaptedRows
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.packed_product import quantize_activations
from codemill.models import CausalLM, load_model, save_pretrained
from codemill.models.quantized import named_weights
from codemill.train.adapter import TrainableLora
from codemill.train.lora_config import LoraSection
from models.adapters import random_ids
from models.reference import make_ours, make_reference

FAMILIES = ["qwen3", "qwen3_moe", "qwen3_next"]
# Of every token, so that rounding moves none to another.
_ALL_EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 8}
SECTION = LoraSection(rank=3, alpha=7)


def quantized(family: str, bits: str, directory: Path) -> CausalLM:
    save_pretrained(make_ours(make_reference(family)), directory)
    return load_model(directory, quantization=bits)


def dequantized(model: CausalLM) -> CausalLM:
    """The same weights, not packed."""
    plain = CausalLM(model.config).eval()
    weights = {
        name: weight.dequantize() if isinstance(weight, PackedMatrix) else weight
        for name, weight in named_weights(model).items()
    }
    plain.load_state_dict(weights)
    return plain.requires_grad_(False)


def gradients(model: CausalLM, adapter: TrainableLora) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the gradients of all of the adapter's parameters, as one vector."""
    adapter.zero_grad()
    input_ids = random_ids(model, 2, 20)
    loss = model(input_ids, adapters=[adapter.lora] * 2).log_softmax(-1)[..., 5].mean()
    loss.backward()
    return loss.detach(), torch.cat([each.grad.flatten() for each in adapter.parameters()])


def random_adapter(model: CausalLM) -> TrainableLora:
    adapter = TrainableLora(model, SECTION)
    torch.manual_seed(3)
    with torch.no_grad():
        for each in adapter.each:
            each.b.normal_(std=0.2)
    return adapter


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_gradients_are_those_of_the_dequantised_model(
    family: str, bits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the C++ library, which rounds activations."""
    monkeypatch.setattr(quantized_linear, "has_product_kernel", lambda *_: False)
    model = quantized(family, bits, tmp_path)
    adapter = random_adapter(model)
    expected_loss, expected = gradients(dequantized(model), adapter)
    loss, exact = gradients(model, adapter)
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(exact, expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-4)


@pytest.mark.skipif(load_cpu_library() is None, reason="the C++ library was not built")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_gradients_of_the_library_are_those_of_rounded_activations(family: str, bits: str, tmp_path: Path) -> None:
    """Of a dequantised model in plain torch whose linear layers round their inputs as the library does."""
    model = quantized(family, bits, tmp_path)
    adapter = random_adapter(model)
    plain = dequantized(model)
    _, unrounded = gradients(plain, adapter)
    for name, module in model.named_modules():
        if isinstance(module, quantized_linear.QuantizedLinear):
            layer = plain.get_submodule(name)
            layer.forward = partial(rounding_forward, layer, module.matrix.group_size)
    expected_loss, expected = gradients(plain, adapter)
    loss, found = gradients(model, adapter)
    # An input halfway between two numbers of 8 bits goes to either.
    torch.testing.assert_close(loss, expected_loss, atol=2e-3, rtol=1e-3)
    assert (found - expected).norm() < 0.01 * expected.norm()
    assert (found - expected).norm() < 0.2 * (unrounded - expected).norm()


def rounding_forward(
    layer: Linear, group_size: int, x: torch.Tensor, adapters: Sequence[AdaptedRows] = ()
) -> torch.Tensor:
    """What the layer does, of inputs in 8 bits; the gradient passes as if they were not."""
    flat = x.detach().flatten(0, -2)
    numbers, scale = quantize_activations(flat, group_size)
    rounded = (numbers * scale[..., None]).flatten(1)[:, : x.shape[-1]].view_as(x)
    out = F.linear(x + (rounded - x).detach(), layer.weight, layer.bias)
    for each in adapters:
        each.add_linear(layer.name, x, out, layer.bias)
    return out


@pytest.mark.skipif(load_cpu_library() is None, reason="the C++ library was not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# Those of a tiny hybrid turn on the last bits of its weights.
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_gradients_of_the_library_are_near(family: str, bits: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Which rounds activations to 8 bits in linear layers, and to bf16 in experts; by how much shows here."""
    reference = make_reference(family, **({} if family == "qwen3" else _ALL_EXPERTS))
    save_pretrained(make_ours(reference), tmp_path)
    model = load_model(tmp_path, quantization=bits)
    adapter = random_adapter(model)
    expected_loss, expected = gradients(dequantized(model), adapter)
    served = load_model(tmp_path, dtype, quantization=bits)
    trained = TrainableLora(served, SECTION)
    trained.load_state_dict(adapter.state_dict())
    loss, found = gradients(served, trained)
    assert (loss - expected_loss).abs() < 0.02 * expected_loss.abs()
    assert 1e-4 * expected.norm() < (found - expected).norm() < 0.1 * expected.norm()
    assert torch.cosine_similarity(found, expected, dim=0) > 0.995


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40, 70), (2000, 1100)])  # in one slice of rows, and in several
def test_gradient_of_a_product(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    matrix = PackedMatrix.quantize(torch.randn(shape), bits=4)
    x, gradient = torch.randn(2, 3, shape[1], dtype=dtype, requires_grad=True), torch.randn(2, 3, shape[0], dtype=dtype)
    quantized_linear.quantized_linear(x, matrix).backward(gradient)
    assert x.grad is not None
    expected = gradient.double() @ matrix.dequantize(torch.float64)
    epsilon = torch.finfo(dtype).eps
    assert (x.grad - expected).abs().max() <= 4 * epsilon * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_training_computes_what_inference_does(family: str, tmp_path: Path) -> None:
    """Of packed documents. So an adapter that has learned nothing yet is the reference, to the last bit."""
    model = quantized(family, "int4", tmp_path)
    adapter = TrainableLora(model, SECTION)
    input_ids, documents = random_ids(model, 1, 20), torch.tensor([[0] * 9 + [1] * 11])
    trained = model(input_ids, document_ids=documents, adapters=[adapter.lora])
    assert trained.requires_grad
    with torch.no_grad():
        assert torch.equal(trained, model(input_ids, document_ids=documents))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_is_kept_for_the_backward_pass_but_packed(family: str, tmp_path: Path) -> None:
    model = quantized(family, "int4", tmp_path)
    adapter = TrainableLora(model, SECTION)
    shapes = {tuple(weight.shape)[-2:] for weight in named_weights(model).values() if isinstance(weight, PackedMatrix)}
    kept: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(random_ids(model, 1, 20), adapters=[adapter.lora]).sum().backward()
    assert kept
    assert not shapes & {shape[-2:] for shape in kept} - {each.a.shape for each in adapter.each}
    assert not shapes & {shape[-2:][::-1] for shape in kept}


def test_a_quantised_model_itself_is_not_trained(tmp_path: Path) -> None:
    save_pretrained(make_ours(make_reference("qwen3")), tmp_path)
    with pytest.raises(UsageError, match="a quantised model cannot be trained"):
        load_model(tmp_path, quantization="int4", trainable=True)
