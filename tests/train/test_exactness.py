"""A packed document computes what it would alone, and of the other documents it sees nothing at all."""

import pytest
import torch
from torch import Tensor

from codemill.models import CausalLM
from models.adapters import EXPERTS, load, make_adapter
from models.reference import FAMILIES, make_ours, make_reference
from train.packed import Packed, token_losses

# Many experts with few tokens each, as the rounding of products depends on the number of rows where that is small.
MANY_EXPERTS = {"num_experts": 32, "num_experts_per_tok": 3}
WIDE = {"hidden_size": 72, "head_dim": 24}
SHAPES = [
    ("qwen3", {}),
    *((family, {**MANY_EXPERTS, **wide}) for family in ("qwen3_moe", "qwen3_next") for wide in ({}, WIDE)),
]


def trainable(family: str, **changes: int) -> CausalLM:
    return make_ours(make_reference(family, **changes)).requires_grad_(True).train()


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_separate(family: str) -> None:
    """Losses and logits differ by less than 1e-5 in fp32.

    The seed is one of those where no document of one token has an output of Gated DeltaNet near zero: its gated norm
    magnifies the rounding of such, in `transformers` as here (1.6e-5 was seen).
    """
    model, packed = trainable(family), Packed.draw(seed=1)
    logits = packed.logits(model)
    for place, losses in zip(packed.places, packed.losses(logits), strict=True):
        ids = packed.input_ids[place]
        alone = model(ids[None])[0]
        torch.testing.assert_close(logits[place], alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(losses, token_losses(alone, ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("family", "changes"), SHAPES)
def test_documents_do_not_see_each_other(family: str, changes: dict[str, int], autocast: bool) -> None:
    """With another token in every place of one document, the losses of the others are the same bits."""
    model, packed = trainable(family, **changes), Packed.draw()
    before = losses(model, packed, autocast)
    for index, place in enumerate(packed.places):
        after = losses(model, packed.changed(place), autocast)
        same = [torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert all(equal for other, equal in enumerate(same) if other != index)
        assert not same[index] or not before[index].numel()


def losses(model: CausalLM, packed: Packed, autocast: bool) -> list[Tensor]:
    """As training computes them: gradients are wanted."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = packed.logits(model)
    assert logits.requires_grad
    return packed.losses(logits)


@pytest.mark.parametrize("seed", range(4))
def test_documents_of_random_lengths_do_not_see_each_other(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(1, 9, (8,), generator=generator).tolist() for _ in range(6)]
    model, packed = trainable("qwen3_moe", **MANY_EXPERTS), Packed.draw(rows, 64, seed)
    before = losses(model, packed, autocast=seed % 2 == 1)
    places = packed.places
    half = torch.stack(places[::2]).any(dim=0)
    after = losses(model, packed.changed(half), autocast=seed % 2 == 1)
    assert all(map(torch.equal, before[1::2], after[1::2]))


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_documents_with_an_adapter_do_not_see_each_other(family: str, tmp_path) -> None:
    settings = {"target_modules": ["q_proj", "o_proj"]}
    if family == "qwen3_moe":
        settings["target_parameters"] = EXPERTS
    reference = make_adapter(tmp_path, family, settings)
    model = make_ours(make_reference(family)).train()
    adapter, packed = load(tmp_path, model), Packed.draw()
    assert reference is not None
    for update in adapter.updates.linears.values():
        update.a.requires_grad_()

    def compute(rows: Packed) -> list[Tensor]:
        adapters = [adapter] * len(rows.input_ids)
        where = {"position_ids": rows.position_ids, "document_ids": rows.document_ids}
        return rows.losses(model(rows.input_ids, adapters=adapters, **where))

    before = compute(packed)
    assert before[0].requires_grad
    for index, place in enumerate(packed.places):
        after = compute(packed.changed(place))
        same = [torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert all(equal for other, equal in enumerate(same) if other != index)
