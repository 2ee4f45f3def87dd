"""However the weights of a network change, the fused decoder computes with those that are there now."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from codemill import LLM, SamplingParams
from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.models import Cache, CausalLM
from codemill.models.quantized import packed_weights
from codemill.models.update import update_weights
from models.adapters import load as load_adapter
from models.adapters import make_adapter
from models.fused_cases import INPUT_IDS, make, run
from models.reference import FAMILIES, make_ours, make_reference

pytestmark = pytest.mark.skipif(load_cpu_library() is None, reason="needs a C++ compiler at installation")

NORM, LAST_NORM = "model.layers.0.input_layernorm.weight", "model.norm.weight"


def last_output(model: CausalLM) -> nn.Module:
    return model.model.layers[-1].self_attn.o_proj


def other(model: CausalLM) -> dict[str, Tensor]:
    """A state with other numbers everywhere, of the same kinds."""
    return {name: (weight.flip(0) * (2 if weight.is_floating_point() else 1)).contiguous()
            for name, weight in model.state_dict().items()}  # fmt: skip


def in_place(model: CausalLM) -> None:
    with torch.no_grad():
        model.get_parameter(NORM).mul_(2)


def through_data(model: CausalLM) -> None:
    model.get_parameter(NORM).data.mul_(2)


def through_numpy(model: CausalLM) -> None:
    model.get_parameter(LAST_NORM).detach().numpy()[:] += 1


def other_memory(model: CausalLM) -> None:
    for name, parameter in model.named_parameters():
        if "down_proj" in name or "norm" in name:
            parameter.data = parameter.data.flip(0).contiguous()


def freed_and_allocated(model: CausalLM) -> None:
    """As engines do that put their weights to sleep."""
    weight = last_output(model).weight
    numbers, storage = weight.detach().clone(), weight.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    weight.data.copy_(numbers.flip(0))


def other_parameter(model: CausalLM) -> None:
    module = last_output(model)
    module.weight = nn.Parameter(module.weight.detach().flip(0).contiguous(), requires_grad=False)


def other_module(model: CausalLM) -> None:
    module = copy.deepcopy(last_output(model))
    module.weight.data.copy_(module.weight.flip(0))
    model.model.layers[-1].self_attn.o_proj = module


def other_embedding(model: CausalLM) -> None:
    module = copy.deepcopy(model.model.embed_tokens)
    module.weight.data.copy_(module.weight.flip(0))
    model.model.embed_tokens = module


def other_order(model: CausalLM) -> None:
    model.model.layers[-1] = copy.deepcopy(model.model.layers[-1])
    other_memory(model.model.layers[-1])


def state(model: CausalLM) -> None:
    model.load_state_dict(other(model))


def assigned_state(model: CausalLM) -> None:
    model.load_state_dict(other(model), assign=True)
    model.requires_grad_(False)


def update(model: CausalLM) -> None:
    update_weights(model, other(model))


def bfloat16(model: CausalLM) -> None:
    model.to(torch.bfloat16)


def all_but_the_head(model: CausalLM) -> None:
    model.model.to(torch.bfloat16)


def there_and_back(model: CausalLM) -> None:
    """On another device weights cannot be fused; what comes back has other memory."""
    numbers = other(model)
    model.to_empty(device="meta")
    model.to_empty(device="cpu")
    model.load_state_dict(numbers)


CHANGES = [
    in_place, through_data, through_numpy, other_memory, freed_and_allocated, other_parameter, other_module,
    other_embedding, other_order, state, assigned_state, update, bfloat16, all_but_the_head, there_and_back,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("quantization", [None, "int4:g64:asym"])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_next"])
def test_changed_weights_are_used(
    family: str, quantization: str | None, change: Callable[[CausalLM], None], tmp_path: Path
) -> None:
    model = make(family, quantization, tmp_path)
    before = run(model)
    assert model._fused_decoder is not None
    change(model)
    expected = run(copy.deepcopy(model))  # which has a fused decoder of its own
    assert not torch.equal(before, expected)
    for _ in range(2):
        assert torch.equal(run(model), expected)


def test_weights_that_stay_are_not_read_again(tmp_path: Path) -> None:
    """NaN too is what it was."""
    model = make("qwen3", "int4", tmp_path)
    model.get_parameter(LAST_NORM).data[3] = torch.nan
    run(model)
    fused = model._fused_decoder
    assert fused is not None
    run(model)
    assert model._fused_decoder is fused


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_tied_embedding_that_is_replaced(quantization: str | None, tmp_path: Path) -> None:
    model = make("qwen3", quantization, tmp_path, tie_word_embeddings=True)
    before = run(model)
    other_embedding(model)
    found = run(model)
    assert not torch.equal(before, found)
    assert torch.equal(found, run(copy.deepcopy(model)))
    other = run(model, fuses=False)
    assert (found - other).abs().max() < 1e-5 * other.abs().max()


def test_an_adapter_that_comes_and_goes(tmp_path: Path) -> None:
    model = make("qwen3", None, tmp_path)
    make_adapter(tmp_path / "adapter", "qwen3", {"target_modules": ["q_proj", "down_proj"]})
    adapter = load_adapter(tmp_path / "adapter", model)
    ids, before = INPUT_IDS[:, :8], run(model, [0, 8])
    with torch.no_grad():
        adapted = model(ids, Cache.allocate(model.config, 2, 40), adapters=[adapter, adapter])
        expected = model(ids, adapters=[adapter, adapter])
    assert (adapted - before).abs().max() > 0.1
    assert (adapted - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(run(model, [0, 8]), before)


def test_an_adapter_that_is_merged(tmp_path: Path) -> None:
    """Into the weights in place, as trainers do between rollouts."""
    model = make("qwen3", None, tmp_path)
    run(model)
    make_adapter(tmp_path / "adapter", "qwen3", {"target_modules": ["q_proj", "down_proj"]})
    adapter = load_adapter(tmp_path / "adapter", model)
    with torch.no_grad():
        expected = model(INPUT_IDS, adapters=[adapter, adapter])
        for name, update in adapter.updates.linears.items():
            model.get_parameter(f"{name}.weight").add_(update.scale * update.b @ update.a)
    assert (run(model) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_conversion_leaves_packed_weights_as_they_are(family: str, tmp_path: Path) -> None:
    """Their scales are fp16 whatever the model computes in; what is small takes the new dtype."""
    model = make(family, "int4:asym", tmp_path)
    expected = {name: matrix.dequantize() for name, matrix in packed_weights(model).items()}
    logits = run(model)
    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        model.to(dtype)
        assert (model.dtype, model.model.embed_tokens(INPUT_IDS).dtype) == (dtype, dtype)
        for name, matrix in packed_weights(model).items():
            assert torch.equal(matrix.dequantize(), expected[name])
        errors = (run(model).float() - logits).norm(dim=-1) / logits.norm(dim=-1)
        assert errors.median() < (0.2 if family == "qwen3_next" else 0.05)
    assert model.half().dtype == torch.float16
    model.to("meta")
    assert all(parameter.is_meta for parameter in model.parameters())


class Doubled(nn.Module):
    """A module that somebody puts around another; it has a weight, too."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.weight = inner, inner.weight

    def forward(self, *args: object) -> Tensor:
        return 2 * self.inner(*args)


def wrapped_matrix(model: CausalLM) -> None:
    model.model.layers[-1].mlp.down_proj = Doubled(model.model.layers[-1].mlp.down_proj)


def wrapped_norm(model: CausalLM) -> None:
    model.model.norm = Doubled(model.model.norm)


def patched_forward(model: CausalLM) -> None:
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x, adapters=(): torch.zeros_like(x)


def bias(model: CausalLM) -> None:
    last_output(model).bias = nn.Parameter(torch.ones(32), requires_grad=False)


def strided_norm(model: CausalLM) -> None:
    model.model.norm.weight.data = torch.randn(64)[::2]


@pytest.mark.parametrize("change", [wrapped_matrix, wrapped_norm, patched_forward, bias, strided_norm])
@pytest.mark.parametrize("is_used_before", [False, True])
def test_what_the_library_does_not_know_is_left_to_the_modules(
    change: Callable[[CausalLM], None], is_used_before: bool
) -> None:
    if change is patched_forward and is_used_before:
        pytest.skip("not seen: patch a network before it is used, or set `fuses` to False")
    model = make_ours(make_reference("qwen3"))
    if is_used_before:
        run(model)
    change(model)
    assert torch.equal(run(model), run(model, fuses=False))


def test_a_matrix_of_another_size_is_not_read_past_its_end() -> None:
    model = make_ours(make_reference("qwen3"))
    run(model)
    model.model.layers[0].mlp.down_proj.weight.data = torch.randn(32, 40)
    with pytest.raises(RuntimeError, match=r"shape|size"):
        run(model)
    model = make_ours(make_reference("qwen3"))
    model.model.embed_tokens = nn.Embedding(10, 32)
    with pytest.raises(IndexError):
        run(model)


def test_hooks_are_called() -> None:
    model = make_ours(make_reference("qwen3"))
    expected, seen = run(model), []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *_: seen.append(1))
    run(model)
    assert len(seen) == 6
    handle.remove()
    assert torch.equal(run(model), expected)
    assert len(seen) == 6


def test_gradients_of_any_weight_are_there_when_they_are_wanted() -> None:
    model = make_ours(make_reference("qwen3"))
    model.model.layers[0].mlp.requires_grad_(True)
    assert model(INPUT_IDS[:, :4], Cache.allocate(model.config, 2, 40)).requires_grad
    with torch.no_grad():
        assert not model(INPUT_IDS[:, :4], Cache.allocate(model.config, 2, 40)).requires_grad


def test_weights_made_in_inference_mode(tmp_path: Path) -> None:
    with torch.inference_mode():
        model = make("qwen3", "int4", tmp_path)
        expected = run(model)
    assert torch.equal(run(model), expected)


@pytest.mark.parametrize("quantization", [None, "int4"])
def test_token_ids_may_be_32_bit_and_strided(quantization: str | None, tmp_path: Path) -> None:
    model = make("qwen3", quantization, tmp_path)
    expected = run(model)
    assert torch.equal(run(model, ids=INPUT_IDS.int()), expected)
    assert torch.equal(run(model, ids=INPUT_IDS.T.contiguous().T), expected)
    for ids in (torch.full((2, 30), 97), torch.full((2, 30), -1)):
        with pytest.raises(IndexError):
            run(model, ids=ids)


@pytest.mark.parametrize("quantization", [None, "int4"])
def test_an_engine_that_sleeps_and_gets_other_weights(quantization: str | None, tmp_path: Path) -> None:
    model = make("qwen3", quantization, tmp_path, vocab_size=300)
    llm = LLM.from_parts(model, LLM().tokenizer, max_model_len=64)
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)

    def ask(engine: LLM) -> tuple[int, ...]:
        return tuple(engine.generate([[5, 6, 7]], params)[0].outputs[0].token_ids)

    before = ask(llm)
    llm.sleep()
    update_weights(model, other(model))
    llm.wake()
    found = ask(llm)
    assert found != before
    assert found == ask(LLM.from_parts(copy.deepcopy(model), llm.tokenizer, max_model_len=64))
    assert isinstance(model.output_embedding, PackedMatrix) == (quantization is not None)
