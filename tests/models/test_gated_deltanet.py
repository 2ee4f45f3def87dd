"""The mixer by the C++ kernel against its PyTorch form, in a pass that mixes all that a segment can be."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from codemill.config import LinearAttentionConfig
from codemill.kernels import gated_delta
from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.segments import Segment, Segments
from codemill.models import ForwardContext
from codemill.models.cache import LinearState
from codemill.models.gated_deltanet import GatedDeltaNet
from codemill.presets import PRESETS

LINEAR = LinearAttentionConfig(2, 6, key_head_dim=20, value_head_dim=36)
CONFIG = replace(PRESETS["qwen3-coder-next"].config, hidden_size=48, linear_attention=LINEAR)
needs_library = pytest.mark.skipif(
    load_cpu_library() is None, reason="the package was installed without a C++ compiler"
)
SEGMENTS = (
    Segment(1, 5, (), 0),
    Segment(40, 0, (), 4, checkpoints=((16, 1), (32, 7))),
    Segment(5, 9, (), 2, num_uncertain=4),
    Segment(1, 2, (), 3),
    Segment(3, 2, (), 5, num_uncertain=3),
)
NUM_ACCEPTED = [0, 0, 4, 0, 2]


@pytest.fixture
def mixer() -> GatedDeltaNet:
    torch.manual_seed(0)
    mixer = GatedDeltaNet(CONFIG).requires_grad_(False)
    for name, parameter in mixer.named_parameters():
        parameter.copy_(torch.randn_like(parameter) * (0.5 if parameter.dim() == 1 else 0.2) + ("norm" in name))
    return mixer


def forward(mixer: GatedDeltaNet, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A pass and what comes after it, with inputs as `dtype` has them -> outputs and all states."""
    generator = torch.Generator().manual_seed(1)
    segments = Segments(SEGMENTS, 16, torch.device("cpu"))
    num_tokens = sum(segment.num_new for segment in SEGMENTS)
    x = torch.randn(1, num_tokens, CONFIG.hidden_size, generator=generator).to(dtype)
    x = x.to(mixer.conv1d.weight.dtype)
    recurrent = torch.randn(8, LINEAR.num_value_heads, 20, 36, generator=generator)
    conv = torch.randn(8, LINEAR.conv_kernel_dim - 1, LINEAR.conv_channels, generator=generator).to(dtype)
    conv = conv.to(x.dtype)
    context = ForwardContext(CONFIG, dtype, torch.zeros(1, num_tokens), segments=segments)
    out = mixer(x, context, LinearState(recurrent, conv))
    assert {deferred.segment for deferred in context.deferred} == {2, 4}
    context.commit(NUM_ACCEPTED)
    return out, recurrent, conv


@needs_library
def test_with_and_without_the_library(monkeypatch: pytest.MonkeyPatch, mixer: GatedDeltaNet) -> None:
    with_library = forward(mixer, torch.float32)
    monkeypatch.setattr(gated_delta, "load_cpu_library", lambda: None)
    for ours, expected in zip(with_library, forward(mixer, torch.float32), strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)


@needs_library
def test_in_bf16_it_is_nearer_to_fp32(monkeypatch: pytest.MonkeyPatch, mixer: GatedDeltaNet) -> None:
    """The PyTorch form rounds between its operations; the kernel only what the states keep."""
    with_library = forward(mixer.bfloat16(), torch.bfloat16)
    monkeypatch.setattr(gated_delta, "load_cpu_library", lambda: None)
    in_pytorch = forward(mixer, torch.bfloat16)
    exact = forward(mixer.float(), torch.bfloat16)
    for ours, theirs, expected in zip(with_library, in_pytorch, exact, strict=True):
        assert ours.dtype == theirs.dtype
        errors = [(x.float() - expected.float()).square().mean().sqrt() for x in (ours, theirs)]
        assert errors[0] <= errors[1]
        assert errors[0] <= 0.02 * expected.float().square().mean().sqrt()
