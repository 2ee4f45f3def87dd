"""`attend` against its reference."""

import pytest
import torch

from codemill.kernels.attention import attend, attend_reference


def tensors(
    batch_size: int, num_queries: int, num_keys: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(num_queries * 1000 + num_keys)
    shapes = (
        (batch_size, num_queries, heads, dim),
        (batch_size, num_keys, kv_heads, dim),
        (batch_size, num_keys, kv_heads, dim),
    )
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (4, 2), (8, 1), (6, 3)])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (1, 7), (2, 2), (33, 33)])
def test_without_a_mask(num_queries: int, num_keys: int, heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    query, key, value = tensors(2, num_queries, num_keys, heads, kv_heads, 16, dtype)
    out = attend(query, key, value)
    assert (out.shape, out.dtype) == (query.shape, dtype)
    expected = attend_reference(query, key, value)
    torch.testing.assert_close(out, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("num_queries", [1, 5])
def test_a_mask_of_its_own_for_each_row(num_queries: int, dtype: torch.dtype) -> None:
    query, key, value = tensors(3, num_queries, 12, 6, 2, 8, dtype)
    starts = torch.tensor([0, 3, 7])
    positions = starts[:, None] + torch.arange(num_queries)
    mask = (torch.arange(12) <= positions[..., None])[:, None]  # [B, 1, T, S], as a cache makes it
    out = attend(query, key, value, mask)
    torch.testing.assert_close(
        out, attend_reference(query, key, value, mask), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


def test_masked_keys_do_not_matter() -> None:
    query, key, value = tensors(1, 4, 10, 4, 2, 8, torch.float32)
    mask = (torch.arange(10) < 6).expand(1, 1, 4, 10)
    before = attend(query, key, value, mask)
    key[:, 6:], value[:, 6:] = 100.0, -100.0
    torch.testing.assert_close(attend(query, key, value, mask), before)


def test_no_query_sees_the_future() -> None:
    query, key, value = tensors(1, 9, 9, 4, 2, 8, torch.float32)
    whole = attend(query, key, value)
    for end in (1, 4, 8):
        part = attend(query[:, :end], key[:, :end], value[:, :end])
        torch.testing.assert_close(part, whole[:, :end], atol=1e-6, rtol=1e-6)


def test_the_reference_by_hand() -> None:
    """Two keys with scores ln 3 and 0: weights 3/4 and 1/4."""
    query = torch.tensor([[[[2.0, 0.0, 0.0, 0.0]]]])
    key = torch.tensor([[[[torch.tensor(3.0).log(), 0.0, 0.0, 0.0]], [[0.0, 1.0, 0.0, 0.0]]]])
    value = torch.tensor([[[[4.0, 0.0, 0.0, 0.0]], [[0.0, 8.0, 0.0, 0.0]]]])
    expected = torch.tensor([[[[3.0, 2.0, 0.0, 0.0]]]])
    torch.testing.assert_close(attend_reference(query, key, value), expected)


def test_gradients_equal_those_of_the_reference() -> None:
    inputs = [x.requires_grad_() for x in tensors(1, 11, 11, 4, 2, 8, torch.float32)]
    weights = torch.linspace(-1, 1, inputs[0].numel()).view_as(inputs[0])
    ours = torch.autograd.grad((attend(*inputs) * weights).sum(), inputs)
    expected = torch.autograd.grad((attend_reference(*inputs) * weights).sum(), inputs)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
