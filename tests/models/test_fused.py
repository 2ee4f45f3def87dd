"""The decoder in one call of the C++ library, against the modules that define it."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from codemill.kernels.cpu_library import load_cpu_library
from codemill.models import Cache, CausalLM, load_model
from codemill.models import fused as fused_module
from models.precision import in_fp64
from models.reference import FAMILIES, make_ours, make_reference

pytestmark = pytest.mark.skipif(load_cpu_library() is None, reason="needs a C++ compiler at installation")

INPUT_IDS = torch.arange(60).view(2, 30) * 7 % 97
ONE_BY_ONE = list(range(31))


@torch.no_grad()
def run(model: CausalLM, cuts: list[int], rows: slice = slice(None), fuses: bool = True) -> Tensor:
    """The logits of the tokens, when they come in pieces."""
    model.fuses = fuses
    ids = INPUT_IDS[rows]
    cache = Cache.allocate(model.config, len(ids), 40)
    return torch.cat([model(ids[:, a:b], cache) for a, b in pairwise(cuts)], dim=1)


@pytest.mark.parametrize("lanes", [16, 8, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_weights_give_what_the_modules_give(family: str, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "_LANES", lanes)
    model = make_ours(make_reference(family))
    with in_fp64(model) as double:
        exact = double(INPUT_IDS[:1])
    # The gated norm of the hybrid magnifies rounding errors, in the modules too: they say how much is to be expected.
    modules = (run(model, [0, 30], slice(0, 1), fuses=False) - exact).abs().max()
    for cuts in ([0, 3, 4, 5, 12, 20, 30], ONE_BY_ONE):
        found = run(model, cuts, rows=slice(0, 1))
        assert model._fused_decoder is not None
        assert (found - exact).abs().max() <= 4 * modules + 1e-5 * exact.abs().max()


@pytest.mark.parametrize("quantization", ["int4", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_weights_give_the_same_bits_in_any_company(family: str, quantization: str, tmp_path) -> None:
    make_reference(family).save_pretrained(tmp_path)
    model = load_model(tmp_path, quantization=quantization)
    expected = run(model, [0, 30])
    assert model._fused_decoder is not None
    assert torch.equal(run(model, ONE_BY_ONE), expected)
    assert torch.equal(run(model, [0, 3, 4, 12, 30], rows=slice(1, 2)), expected[1:])
