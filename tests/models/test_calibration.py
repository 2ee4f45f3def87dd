"""The walk over the layers: what it yields, what it is good for, and that it leaves the model as it is."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from codemill.config import PackedFormat, QuantizationConfig
from codemill.errors import CodemillError, UsageError
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.models import CausalLM, load_model
from codemill.models.calibration import CalibratedWeights, quantize_layerwise
from codemill.models.quantize_directory import quantize_model
from codemill.models.quantized import matrices, packed_weights
from codemill.models.skeleton import set_parameter
from models.reference import FAMILIES, make_ours, make_reference

INT4 = QuantizationConfig.parse("int4").format_of
EMBEDDING = "model.embed_tokens.weight"


def make(family: str, **changes: object) -> CausalLM:
    return make_ours(make_reference(family, moe_intermediate_size=20, **changes))


def batches(seed: int = 0, count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(97, (2, 100), generator=generator) for _ in range(count)]


def set_weights(model: CausalLM, quantised: dict[str, PackedMatrix]) -> None:
    for name, matrix in quantised.items():
        set_parameter(model, name, matrix.dequantize())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_but_the_embedding_comes_once(family: str) -> None:
    model = make(family)
    found = list(quantize_layerwise(model, batches(count=1), INT4))
    names = [name for name, _ in found]
    assert names[-1] == "lm_head.weight"
    assert sorted(names) == sorted(set(matrices(model)) - {EMBEDDING})
    assert all(matrix.shape == tuple(matrices(model)[name].shape) for name, matrix in found)


def test_a_tied_head_is_left_to_the_embedding() -> None:
    names = {name for name, _ in quantize_layerwise(make("qwen3", tie_word_embeddings=True), batches(), INT4)}
    assert not names & {"lm_head.weight", EMBEDDING}


def test_formats_are_those_asked_for() -> None:
    def format_of(name: str) -> PackedFormat | None:
        return None if "o_proj" in name else PackedFormat(8, 32, False) if "mlp" in name else PackedFormat(4)

    found = dict(quantize_layerwise(make("qwen3_moe"), batches(count=1), format_of))
    assert not any("o_proj" in name for name in found)
    assert all((matrix.bits, matrix.symmetric) == ((8, False) if "mlp" in name else (4, True))
               for name, matrix in found.items())  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_stays_as_it_is(family: str) -> None:
    model, expected = make(family), make(family)
    list(quantize_layerwise(model, batches(count=1), INT4))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_of_new_text_are_nearer_than_plainly_quantised(family: str) -> None:
    model, calibrated, plain = (make(family, hidden_size=128) for _ in range(3))
    set_weights(calibrated, dict(quantize_layerwise(model, batches(), INT4)))
    set_weights(plain, {name: PackedMatrix.quantize(weight, 4) for name, weight in matrices(model).items()
                        if name != EMBEDDING})  # fmt: skip
    with torch.inference_mode():
        expected, *others = (each.hidden_states(batches(seed=1)[0]) for each in (model, calibrated, plain))
    errors = [(other - expected).norm().item() for other in others]
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_sees_what_the_quantised_one_before_gives(family: str) -> None:
    model = make(family)
    found = dict(quantize_layerwise(model, batches(count=2), INT4))
    first, others = ({name: matrix for name, matrix in found.items() if name.startswith("model.layers.0.") is is_first}
                     for is_first in (True, False))  # fmt: skip
    set_weights(model, first)
    again = quantize_layerwise(model, batches(count=2), lambda name: None if name in first else INT4(name))
    assert [name for name, matrix in again if torch.equal(matrix.weight, others[name].weight)] == list(others)


def test_experts_that_no_token_reaches_are_plain() -> None:
    model = make("qwen3_moe")
    ids = torch.zeros(1, 40, dtype=torch.long)  # 40 times the same token goes to few experts
    found = dict(quantize_layerwise(model, [ids], INT4))["model.layers.0.mlp.experts.down_proj"]
    plain = PackedMatrix.quantize(model.get_parameter("model.layers.0.mlp.experts.down_proj").detach(), 4)
    same = [torch.equal(a.weight, b.weight) for a, b in zip(map(found.__getitem__, range(8)),
            map(plain.__getitem__, range(8)), strict=True)]  # fmt: skip
    assert 0 < sum(same) < 8


def test_weights_are_taken_by_name_in_any_order() -> None:
    model = make("qwen3")
    expected = dict(quantize_layerwise(model, batches(), INT4))
    weights = CalibratedWeights(model, batches(), INT4)
    for name in reversed(expected):
        assert torch.equal(weights.take(name).weight, expected[name].weight)
    with pytest.raises(KeyError, match="embed_tokens"):
        weights.take(EMBEDDING)


def test_no_text_is_an_error() -> None:
    with pytest.raises(UsageError, match="calibrate"):
        next(quantize_layerwise(make("qwen3"), [], INT4))


def test_a_damaged_weight_is_named() -> None:
    model = make("qwen3")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 3] = torch.nan
    with pytest.raises(CodemillError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: a weight is NaN"):
        list(quantize_layerwise(model, batches(), INT4))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_holds_the_calibrated_weights(tmp_path: Path, family: str) -> None:
    make_reference(family, moe_intermediate_size=20).save_pretrained(tmp_path / "full")
    quantize_model(tmp_path / "full", tmp_path / "small", "int4:head8", calibration=batches())
    form, full = QuantizationConfig.parse("int4:head8"), load_model(tmp_path / "full")
    expected = dict(quantize_layerwise(full, batches(), form.format_of))
    expected[EMBEDDING] = PackedMatrix.quantize(full.model.embed_tokens.weight, 8)
    found = packed_weights(load_model(tmp_path / "small"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].weight, matrix.weight) for name, matrix in expected.items())
    assert all(torch.equal(found[name].scale, matrix.scale) for name, matrix in expected.items())


def test_random_weights_are_not_calibrated(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="random"):
        quantize_model("random:qwen3-0.6b", tmp_path / "small", calibration=batches())
