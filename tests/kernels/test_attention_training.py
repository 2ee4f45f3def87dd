"""Backward of attention over packed documents in tiles, against the reference by autograd in fp32."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from codemill.kernels.attention import attend_document, attend_reference
from codemill.kernels.attention_training import _processor_has_kernel, attend_documents, has_attention_kernel

pytestmark = pytest.mark.skipif(not _processor_has_kernel(), reason="the processor has no AMX, or nothing was built")
# (documents, query heads, key/value heads, head_dim): one token, around blocks of 32, and around a chunk of 512.
CASES = [
    ((1,), 2, 1, 32),
    ((31, 1, 33, 2), 4, 2, 64),
    ((100, 7), 3, 3, 96),
    ((513, 512, 90), 4, 2, 128),
    ((1100,), 2, 1, 64),
    ((70,), 8, 1, 256),
]


def draw(documents: Sequence[int], heads: int, kv_heads: int, head_dim: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, sum(documents), count, head_dim) for count in (heads, kv_heads, kv_heads, heads)]
    return [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]


def with_gradients(function, inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    trained = [x.detach().requires_grad_() for x in inputs]
    out = function(*trained)
    return [out, *torch.autograd.grad(out, trained, upstream.to(out.dtype))]


def apart(function, documents: Sequence[int]):
    def compute(*inputs: Tensor) -> Tensor:
        pieces = zip(*(x.split(list(documents), dim=1) for x in inputs), strict=True)
        return torch.cat([function(*piece) for piece in pieces], dim=1)

    return compute


@pytest.mark.parametrize("case", CASES)
def test_against_the_reference(case: tuple) -> None:
    documents = case[0]
    *inputs, upstream = draw(*case)
    results = with_gradients(lambda *x: attend_documents(*x, documents), inputs, upstream)
    exact = with_gradients(apart(attend_reference, documents), [x.float() for x in inputs], upstream)
    for mine, expected in zip(results, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - expected).norm() <= 0.004 * expected.norm()
    assert torch.equal(results[0], apart(attend_document, documents)(*inputs))


def test_no_document_sees_another() -> None:
    documents = (40, 70, 33)
    *inputs, upstream = draw(documents, 4, 2, 64)
    before = with_gradients(lambda *x: attend_documents(*x, documents), inputs, upstream)
    changed = [x.clone() for x in inputs]
    for x in changed:
        x[:, 40:110] = 9.0
    after = with_gradients(lambda *x: attend_documents(*x, documents), changed, upstream)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:, :40], new[:, :40])
        assert torch.equal(old[:, 110:], new[:, 110:])
        assert not torch.equal(old[:, 40:110], new[:, 40:110])


def test_the_number_of_threads_changes_no_bit() -> None:
    documents = (300, 5, 64)
    *inputs, upstream = draw(documents, 4, 2, 64)
    before, results = torch.get_num_threads(), []
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        results.append(with_gradients(lambda *x: attend_documents(*x, documents), inputs, upstream))
    torch.set_num_threads(before)
    for one, three in zip(*(each[1:] for each in results), strict=True):
        assert torch.equal(one, three)


def test_what_it_leaves_to_pytorch() -> None:
    query, key, value, _ = (x.requires_grad_() for x in draw((8,), 2, 1, 64))
    assert has_attention_kernel(query * 1, key * 1, value * 1)
    assert not has_attention_kernel(*(x.float() for x in (query, key, value)))
    assert not has_attention_kernel(*(x.detach() for x in (query, key, value)))
    assert not has_attention_kernel(*(x[..., :40] for x in (query, key, value)))
