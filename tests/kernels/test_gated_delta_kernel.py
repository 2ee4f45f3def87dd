"""The C++ kernel of Gated DeltaNet against its definition in fp64, and its promise of equal bits."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codemill.kernels import gated_delta
from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.gated_delta import (
    DeltaSegments,
    DeltaWeights,
    gated_delta_recurrent,
    gated_delta_segments,
    has_delta_kernel,
)
from codemill.kernels.segments import Segment, Segments

pytestmark = pytest.mark.skipif(load_cpu_library() is None, reason="the package was installed without a C++ compiler")


@dataclass(frozen=True)
class Shape:
    key_heads: int = 2
    repeats: int = 2
    key_dim: int = 24
    value_dim: int = 40
    width: int = 4

    @property
    def heads(self) -> int:
        return self.key_heads * self.repeats

    @property
    def channels(self) -> int:
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim


@dataclass(frozen=True)
class Layer:
    """Weights, states in slots, and new tokens qkvz and ba [N, ...]. Slots of nobody hold NaN."""

    shape: Shape
    weights: DeltaWeights
    recurrent: Tensor
    windows: Tensor
    qkvz: Tensor
    ba: Tensor

    def run(self, *segments: Segment) -> Tensor:
        """Advances the states."""
        table = DeltaSegments.of(Segments(segments, 16, torch.device("cpu")))
        out = gated_delta_segments(self.qkvz, self.ba, self.weights, self.recurrent, self.windows, table)
        assert out is not None
        return out

    def states(self, slot: int) -> tuple[Tensor, Tensor]:
        return self.recurrent[slot], self.windows[slot]

    def copy(self) -> "Layer":
        return replace(self, recurrent=self.recurrent.clone(), windows=self.windows.clone())

    def rows(self, first: int, stop: int) -> "Layer":
        """The same states with fewer new tokens."""
        return replace(self, qkvz=self.qkvz[first:stop], ba=self.ba[first:stop])


def draw(
    num_tokens: int, shape: Shape | None = None, dtype: torch.dtype = torch.float32, slots: int = 4, seed: int = 0
) -> Layer:
    shape = shape or Shape()
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    weights = DeltaWeights(
        (normal(shape.channels, shape.width) / 2).to(dtype),
        normal(shape.heads) - 1,
        normal(shape.heads),
        normal(shape.value_dim) + 1,
        1e-6,
    )
    recurrent = normal(slots, shape.heads, shape.key_dim, shape.value_dim)
    windows = normal(slots, shape.width - 1, shape.channels).to(dtype)
    qkvz = normal(num_tokens, shape.channels + shape.heads * shape.value_dim)
    return Layer(shape, weights, recurrent, windows, qkvz, 2 * normal(num_tokens, 2 * shape.heads))


def reference(layer: Layer, slot: int) -> tuple[Tensor, Tensor, Tensor]:
    """In fp64 -> outputs of all tokens as one sequence, and its states."""
    shape, weights = layer.shape, layer.weights
    heads, key_dim, value_dim = shape.heads, shape.key_dim, shape.value_dim
    sizes = (key_dim, key_dim, shape.repeats * value_dim, shape.repeats * value_dim)
    *qkv, z = layer.qkvz.double().unflatten(1, (shape.key_heads, -1)).split(sizes, dim=-1)
    mixed = torch.cat([part.flatten(1) for part in qkv], dim=1).to(layer.windows.dtype).double()
    history = torch.cat((layer.windows[slot].double(), mixed)).T
    conv = F.silu(F.conv1d(history[None], weights.conv.double()[:, None], groups=shape.channels)[0].T)
    query, key, value = conv.split((shape.key_heads * key_dim, shape.key_heads * key_dim, heads * value_dim), dim=1)
    query, key = (unit(x.unflatten(1, (shape.key_heads, -1)), shape.repeats) for x in (query, key))
    b, a = (x.flatten(1).double() for x in layer.ba.unflatten(1, (shape.key_heads, 2, -1)).unbind(2))
    g = -weights.A_log.double().exp() * F.softplus(a + weights.dt_bias.double())
    inputs = (query * key_dim**-0.5, key, value.unflatten(1, (heads, -1)).transpose(0, 1)[None])
    state = layer.recurrent[slot : slot + 1].double()
    out, state = gated_delta_recurrent(*inputs, g.T[None], b.sigmoid().T[None], state)
    out = F.rms_norm(out[0].transpose(0, 1), (value_dim,), weights.norm.double(), weights.eps)
    out = out * F.silu(z.reshape(out.shape))
    return out.flatten(1), state[0], history.T[len(history.T) - shape.width + 1 :]


def unit(x: Tensor, repeats: int) -> Tensor:
    """[T, G, K] -> unit vectors [1, H, T, K]."""
    x = x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)
    return x.repeat_interleave(repeats, dim=1).transpose(0, 1)[None]


def assert_right(layer: Layer, slot: int = 1) -> None:
    expected, state, window = reference(layer, slot)
    before, num_tokens = layer.copy(), len(layer.qkvz)
    out = layer.run(Segment(num_tokens, 0, (), slot))
    torch.testing.assert_close(out.double(), expected, atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(layer.recurrent[slot].double(), state, atol=1e-5, rtol=1e-5)
    assert torch.equal(layer.windows[slot].double(), window)
    others = torch.arange(len(layer.windows)) != slot
    assert torch.equal(layer.recurrent[others], before.recurrent[others])
    assert torch.equal(layer.windows[others], before.windows[others])


@settings(max_examples=60, deadline=None)
@given(
    num_tokens=st.integers(1, 80),
    shape=st.builds(
        Shape,
        st.integers(1, 3),
        st.integers(1, 4),
        st.sampled_from([1, 3, 16, 24, 65, 128]),
        st.sampled_from([1, 5, 16, 24, 40, 64, 100, 128]),
        st.integers(1, 5),
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_equals_the_definition(num_tokens: int, shape: Shape, dtype: torch.dtype, seed: int) -> None:
    assert_right(draw(num_tokens, shape, dtype, seed=seed))


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value_dim", [3, 40, 128, 200])
def test_every_variant(monkeypatch: pytest.MonkeyPatch, lanes: int, dtype: torch.dtype, value_dim: int) -> None:
    """Which one runs depends on the processor; where it lacks the instructions, a smaller one takes its place."""
    monkeypatch.setattr(gated_delta, "_LANES", lanes)
    assert_right(draw(70, Shape(value_dim=value_dim), dtype))


@pytest.mark.parametrize("shift", [-30.0, 30.0])
def test_gates_far_from_zero(shift: float) -> None:
    """States that forget at once, or never: softplus and sigmoid at both ends."""
    layer = draw(40)
    layer.ba.add_(shift)
    assert_right(layer)


def test_gates_are_exact_to_the_last_bits() -> None:
    """The state [1, 1] after one token that writes nothing is the decay."""
    shape = Shape(1, 1, 1, 1, 1)
    for a in torch.linspace(-40, 12, 400):
        layer = draw(1, shape)
        layer.recurrent.fill_(1)
        layer.ba.copy_(torch.tensor([[-200.0, a]]))
        layer.run(Segment(1, 0, ()))
        weights = layer.weights
        rate = weights.A_log.double().exp() * F.softplus(a.double() + weights.dt_bias.double(), threshold=100)
        decay = (-rate).exp().item()
        assert layer.recurrent[0].item() == pytest.approx(decay, rel=2e-7 * (1 + rate.item()), abs=1e-37)


CUTS = [(1,) * 75, (32, 43), (31, 1, 43), (64, 11), (1, 74), (74, 1), (2, 33, 40)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("shape", [Shape(), Shape(1, 1, 7, 130, 3), Shape(2, 1, 128, 128)])
def test_the_same_bits_however_it_is_cut(
    monkeypatch: pytest.MonkeyPatch, shape: Shape, lanes: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(gated_delta, "_LANES", lanes)
    layer = draw(75, shape, dtype)
    for cut in CUTS:
        whole, pieces = layer.copy(), layer.copy()
        expected, outputs, first = whole.run(Segment(75, 0, (), 2)), list[Tensor](), 0
        for size in cut:
            outputs.append(pieces.rows(first, first + size).run(Segment(size, first, (), 2)))
            first += size
        assert torch.equal(torch.cat(outputs), expected), cut
        assert torch.equal(pieces.recurrent, whole.recurrent)
        assert torch.equal(pieces.windows, whole.windows)


def test_the_same_bits_in_any_company() -> None:
    layer = draw(60, slots=5)
    layer.qkvz[3:40], layer.ba[3:40] = float("nan"), float("inf")
    layer.recurrent[3], layer.windows[3] = float("nan"), float("nan")
    together, lengths = layer.copy(), (3, 37, 1, 19)
    out = together.run(*(Segment(length, 0, (), slot) for length, slot in zip(lengths, (2, 3, 0, 4), strict=True)))
    assert out[3:40].isnan().all()
    for first, length, slot in ((0, 3, 2), (40, 1, 0), (41, 19, 4)):
        alone = layer.copy()
        assert torch.equal(
            alone.rows(first, first + length).run(Segment(length, 0, (), slot)), out[first : first + length]
        )
        for ours, expected in zip(together.states(slot), alone.states(slot), strict=True):
            assert torch.equal(ours, expected)
    assert torch.equal(together.recurrent[1], layer.recurrent[1])


def test_the_same_bits_on_any_number_of_threads() -> None:
    layer = draw(90, Shape(key_heads=3))
    segments = (Segment(50, 0, (), 0), Segment(1, 0, (), 3), Segment(39, 0, (), 1))
    first = layer.copy().run(*segments)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            assert torch.equal(layer.copy().run(*segments), first), threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("certain", "drafts"), [(0, 5), (1, 4), (40, 3), (2, 70), (32, 33)])
def test_the_state_waits_before_drafts(certain: int, drafts: int) -> None:
    layer = draw(certain + drafts, dtype=torch.bfloat16)
    sure, unsure, short = layer.copy(), layer.copy(), layer.copy()
    expected = sure.run(Segment(certain + drafts, 0, (), 1))
    assert torch.equal(unsure.run(Segment(certain + drafts, 0, (), 1, num_uncertain=drafts)), expected)
    if certain:
        short.rows(0, certain).run(Segment(certain, 0, (), 1))
    assert torch.equal(unsure.recurrent, short.recurrent)
    assert torch.equal(unsure.windows, short.windows)
    rows = unsure.rows(certain, certain + drafts)  # all are accepted, and nobody wants their outputs again
    states, alone = (unsure.recurrent, unsure.windows), DeltaSegments.alone(drafts, 1)
    assert gated_delta_segments(rows.qkvz, rows.ba, layer.weights, *states, alone, want_outputs=False) is None
    assert torch.equal(unsure.recurrent, sure.recurrent)
    assert torch.equal(unsure.windows, sure.windows)


def test_drafts_leave_no_trace_even_if_nan() -> None:
    layer = draw(9)
    layer.qkvz[4:], layer.ba[4:] = float("nan"), float("nan")
    out = layer.run(Segment(9, 0, (), num_uncertain=5))
    assert out[:4].isfinite().all()
    assert out[4:].isnan().any()
    assert all(state.isfinite().all() for state in layer.states(0))


@pytest.mark.parametrize("lanes", [4, 16])
def test_checkpoints_hold_the_state_of_their_place(monkeypatch: pytest.MonkeyPatch, lanes: int) -> None:
    monkeypatch.setattr(gated_delta, "_LANES", lanes)
    layer, places = draw(100, slots=8, dtype=torch.bfloat16), {1: 3, 33: 5, 96: 0, 97: 6}
    kept = layer.copy()
    segment = Segment(100, 0, (), 1, num_uncertain=3, checkpoints=tuple(reversed(places.items())))
    out = kept.run(segment, Segment(0, 0, (), 2))
    assert torch.equal(out, layer.copy().run(Segment(100, 0, (), 1)))
    for place, slot in places.items():
        alone = layer.copy()
        alone.rows(0, place).run(Segment(place, 0, (), 1))
        for ours, expected in zip(kept.states(slot), alone.states(1), strict=True):
            assert torch.equal(ours, expected), place
    for ours, expected in zip(kept.states(1), kept.states(6), strict=True):
        assert torch.equal(ours, expected)


def test_weights_and_inputs_of_other_dtypes() -> None:
    layer = draw(5, dtype=torch.bfloat16)
    half = replace(
        layer,
        qkvz=layer.qkvz.bfloat16(),
        weights=replace(layer.weights, A_log=layer.weights.A_log.bfloat16(), conv=layer.weights.conv.half()),
    )
    plain = replace(half, qkvz=half.qkvz.float(), weights=replace(layer.weights, A_log=half.weights.A_log.float()))
    assert torch.equal(half.copy().run(Segment(5, 0, ())), plain.copy().run(Segment(5, 0, ())))


def test_what_the_kernel_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = draw(3)
    states = (layer.recurrent, layer.windows)
    assert has_delta_kernel(layer.qkvz, *states)
    assert not has_delta_kernel(layer.qkvz.clone().requires_grad_(), *states)
    assert not has_delta_kernel(layer.qkvz, layer.recurrent, layer.windows.half())
    assert not has_delta_kernel(layer.qkvz, layer.recurrent.transpose(2, 3), layer.windows)
    monkeypatch.setattr(gated_delta, "load_cpu_library", lambda: None)
    assert not has_delta_kernel(layer.qkvz, *states)
