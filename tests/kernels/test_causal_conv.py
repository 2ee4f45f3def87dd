"""The causal convolution against `torch`'s, whole and in pieces."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.kernels.causal_conv import causal_conv, next_window


def draw(batch_size: int, num_tokens: int, channels: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    return (
        torch.randn(batch_size, num_tokens, channels, generator=generator),
        torch.randn(channels, width, generator=generator),
        torch.randn(batch_size, width - 1, channels, generator=generator),
    )


def by_torch(x: Tensor, weight: Tensor, window: Tensor) -> Tensor:
    history = torch.cat((window, x), dim=1).transpose(1, 2)
    return F.conv1d(history, weight[:, None], groups=weight.shape[0]).transpose(1, 2)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 65])
def test_equals_conv1d(num_tokens: int, width: int) -> None:
    x, weight, window = draw(2, num_tokens, 6, width)
    torch.testing.assert_close(causal_conv(x, weight, window), by_torch(x, weight, window), atol=1e-5, rtol=1e-5)


def test_bf16_is_summed_in_fp32() -> None:
    x, weight, window = (tensor.bfloat16() for tensor in draw(2, 9, 5, 4))
    out = causal_conv(x, weight, window)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, by_torch(x.float(), weight.float(), window.float()).bfloat16())


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1), (2, 4), (5, 1), (1, 5)])
def test_in_pieces_with_the_window_carried(sizes: tuple[int, ...]) -> None:
    x, weight, window = draw(3, 6, 4, 4)
    whole = causal_conv(x, weight, window)
    outputs = []
    for piece in x.split(sizes, dim=1):
        outputs.append(causal_conv(piece, weight, window))
        window = next_window(piece, window)
    assert torch.equal(torch.cat(outputs, dim=1), whole)


def test_the_next_window_ends_with_the_last_tokens() -> None:
    x = torch.arange(1.0, 6.0).view(1, 5, 1)
    window = torch.tensor([-3.0, -2.0, -1.0]).view(1, 3, 1)
    assert next_window(x, window)[0, :, 0].tolist() == [3, 4, 5]
    assert next_window(x[:, :1], window)[0, :, 0].tolist() == [-2, -1, 1]
    assert next_window(x[:, :0], window)[0, :, 0].tolist() == [-3, -2, -1]
