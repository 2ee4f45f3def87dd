"""Networks and passes for the tests of the fused decoder."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codemill.kernels.cpu_product import cpu_product
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.packed_product import product_reference
from codemill.models import Cache, CausalLM, load_model
from models.reference import make_ours, make_reference

INPUT_IDS = torch.arange(60).view(2, 30) * 7 % 97
CUTS = [0, 3, 4, 8, 20, 24, 30]
ONE_BY_ONE = list(range(31))


@torch.no_grad()
def run(
    model: CausalLM,
    cuts: list[int] = CUTS,
    fuses: bool = True,
    ids: Tensor = INPUT_IDS,
    kv_dtype: torch.dtype | None = None,
) -> Tensor:
    """The logits of the tokens, when they come in pieces."""
    model.fuses = fuses
    dtype = torch.bfloat16 if model.dtype == torch.bfloat16 else torch.float32
    cache = Cache.allocate(model.config, len(ids), 40, dtype, kv_dtype=kv_dtype)
    return torch.cat([model(ids[:, a:b], cache) for a, b in pairwise(cuts)], dim=1)


def make(family: str, quantization: str | None, folder: Path, seed: int = 0, **changes: Any) -> CausalLM:
    """A tiny random network; from a checkpoint in `folder` if it is to be quantised."""
    reference = make_reference(family, seed, **changes)
    if quantization is None:
        return make_ours(reference)
    reference.save_pretrained(folder)
    return load_model(folder, quantization=quantization)


def reference_product(x: Tensor, weight: Tensor | PackedMatrix) -> Tensor:
    """`cpu_product` with packed weights as they are defined."""
    if not isinstance(weight, PackedMatrix):
        return cpu_product(x, weight)
    rows = x.float().reshape(-1, x.shape[-1])
    return product_reference(rows, weight).view(*x.shape[:-1], -1)


def errors(found: Tensor, expected: Tensor) -> Tensor:
    """Of each token, relative to the size of what is expected."""
    found, expected = found.double(), expected.double()
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1)
