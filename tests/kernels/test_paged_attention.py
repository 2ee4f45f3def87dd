"""Attention over the paged KV cache against its definition, and the C++ kernel's promise of equal bits."""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codemill.kernels import kv_cache, paged_attention
from codemill.kernels.cpu_library import CpuLibrary, load_cpu_library
from codemill.kernels.kv_cache import KVCache
from codemill.kernels.paged_attention import PagedAttention, paged_attention_reference
from codemill.kernels.segments import Segment, Segments

needs_library = pytest.mark.skipif(
    load_cpu_library() is None, reason="the package was installed without a C++ compiler"
)
# bf16: half a unit in the last place of the result, and as much again for a score near the other side of a rounding.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 2e-3, torch.float64: 1e-6}


@dataclass(frozen=True)
class Pass:
    """Random inputs of a call: query [N, H, K] over a cache, with NaN and infinity in slots of nobody."""

    query: Tensor
    cache: KVCache
    segments: Segments
    may_use_tiles: bool = False

    def attend(self) -> Tensor:
        new = self.cache.read(self.segments.slot_mapping, self.query.dtype)
        return PagedAttention(self.segments, self.may_use_tiles).attend(self.query, *new, self.cache)

    def reference(self) -> Tensor:
        clean = [x.nan_to_num(0.0, 0.0, 0.0) if x.is_floating_point() else x for x in self.cache.tensors.values()]
        return paged_attention_reference(self.query, KVCache(*clean), self.segments)

    def spoil(self, slots: Tensor) -> None:
        """NaN in the keys, infinity in the values."""
        key, value = torch.full((2, len(slots), *self.cache.key.shape[1:]), float("nan"))
        self.cache.write(key, torch.full_like(value, float("inf")), slots)

    def alone(self, index: int, token: int) -> Tensor:
        """One token of one segment in a call of its own, [H, K]: the tokens before it are its past."""
        return self.part(index, token, 1).attend()[0]

    def part(self, index: int, first: int, count: int) -> "Pass":
        """Some tokens of one segment: those before are their past."""
        segment = self.segments.each[index]
        row = self.segments.starts[index] + first
        own = replace(segment, num_new=count, num_past=segment.num_past + first)
        return replace(self, query=self.query[row : row + count], segments=replace(self.segments, each=(own,)))


def draw(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    kv_dtype: torch.dtype | None = None,
) -> Pass:
    """`lengths` are (new, past) tokens; blocks are scattered at random; heads are (H, H_kv); kv_dtype: as dtype."""
    generator = torch.Generator().manual_seed(seed)
    needed = [-(-(new + past) // block_size) for new, past in lengths]
    free = torch.randperm(sum(needed) + 2, generator=generator).tolist()
    tables = [tuple(free.pop() for _ in range(count)) for count in needed]
    each = tuple(Segment(new, past, table) for (new, past), table in zip(lengths, tables, strict=True))
    segments = Segments(each, block_size, torch.device("cpu"))
    used = torch.zeros((sum(needed) + 2) * block_size, dtype=torch.bool)
    for segment in each:
        for first, count in segments.runs(segment.block_table, 0, segment.length):
            used[first : first + count] = True
    shape = (len(used), heads[1], head_dim)
    cache = empty_cache(shape, kv_dtype or dtype)
    cache.write(*(torch.randn(shape, generator=generator) for _ in range(2)), torch.arange(len(used)))
    query = torch.randn(sum(new for new, _ in lengths), heads[0], head_dim, generator=generator).to(dtype)
    drawn = Pass(query, cache, segments)
    drawn.spoil((~used).nonzero()[:, 0])
    return drawn


def empty_cache(shape: tuple[int, int, int], dtype: torch.dtype) -> KVCache:
    scales = [torch.zeros(shape[:2]) for _ in range(2)] if dtype == torch.int8 else []
    return KVCache(*(torch.zeros(shape, dtype=dtype) for _ in range(2)), *scales)


def assert_right(drawn: Pass) -> None:
    tolerance = TOLERANCE[drawn.query.dtype]
    torch.testing.assert_close(drawn.attend(), drawn.reference(), atol=tolerance, rtol=tolerance)


# Of queries and of the cache, as the kernel takes them.
DTYPES = list(product([torch.float32, torch.bfloat16], [torch.float32, torch.bfloat16, torch.int8]))
LENGTHS = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 600)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    num_kv_heads=st.integers(1, 4),
    group=st.integers(1, 7),
    head_dim=st.sampled_from([8, 16, 24, 64, 80, 128, 256, 12, 264]),
    block_size=st.sampled_from([1, 3, 16, 32, 700]),
    dtypes=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_equals_the_reference(
    lengths: list[tuple[int, int]],
    num_kv_heads: int,
    group: int,
    head_dim: int,
    block_size: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    seed: int,
) -> None:
    dtype, kv_dtype = dtypes
    assert_right(draw(lengths, (num_kv_heads * group, num_kv_heads), head_dim, block_size, dtype, seed, kv_dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    assert_right(draw([(1, 40), (3, 17), (1, 0), (7, 0), (1, 5)], dtype=dtype))


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_without_the_library(monkeypatch: pytest.MonkeyPatch, kv_dtype: torch.dtype) -> None:
    drawn = draw([(1, 300), (4, 17), (1, 1), (30, 2), (5, 0), (1, 0)], kv_dtype=kv_dtype)
    with_library = drawn.attend()
    monkeypatch.setattr(paged_attention, "load_cpu_library", lambda: None)
    assert_right(drawn)
    torch.testing.assert_close(drawn.attend(), with_library, atol=2e-6, rtol=2e-6)


def test_a_query_whose_heads_lie_apart() -> None:
    drawn = draw([(1, 30), (3, 300)])
    apart = drawn.query.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(replace(drawn, query=apart).attend(), drawn.attend())


HARD_VECTORS = [
    [0.0] * 20,
    [-0.0, 1e-38, -1e-31] + [0.0] * 17,
    [3.0, -127.0, 0.5, 1.5, 2.5, -0.5, 126.5] + [0.25] * 13,
    [1e38, -3e38] + [1e37] * 18,
    [1.0, float("nan")] + [2.0] * 18,
    [1.0] * 19 + [float("-inf")],
]


@needs_library
def test_quantising_in_cpp_is_quantising_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, in the kernel's order of slots, for head_dim 20 and for what is hard to divide."""
    hard = torch.tensor(HARD_VECTORS).view(3, 2, 20)
    new = torch.cat([hard, torch.randn(40, 2, 20).exp() * torch.randn(40, 2, 20)])
    slots = torch.randperm(50)[: len(new)]
    found, expected = empty_cache((50, 2, 20), torch.int8), empty_cache((50, 2, 20), torch.int8)
    found.write(new, new.flip(0), slots)
    monkeypatch.setattr(kv_cache, "load_cpu_library", lambda: None)
    expected.write(new, new.flip(0), slots)
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=0, equal_nan=True)
    exact = new[3:].abs().amax(-1, keepdim=True) / 127 / 2
    assert ((found.read(slots, torch.float32)[0] - new)[3:].abs() <= exact * 1.0001).all()
    assert found.read(slots, torch.float32)[0][2].isnan().all()


def test_gradients_take_the_differentiable_path() -> None:
    drawn = draw([(2, 30)])
    drawn.query.requires_grad_()
    drawn.attend().sum().backward()
    assert drawn.query.grad is not None


@needs_library
@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize(("dtype", "kv_dtype"), DTYPES)
@pytest.mark.parametrize("head_dim", [8, 48, 64, 96])
def test_every_variant(
    monkeypatch: pytest.MonkeyPatch, lanes: int, dtype: torch.dtype, kv_dtype: torch.dtype, head_dim: int
) -> None:
    """Which one runs depends on the processor; where it lacks the instructions, a smaller one takes its place."""
    monkeypatch.setattr(paged_attention, "_LANES", lanes)
    assert_right(draw([(1, 700), (5, 250), (16, 3)], (6, 2), head_dim, dtype=dtype, kv_dtype=kv_dtype))


@needs_library
@pytest.mark.parametrize(("dtype", "kv_dtype"), DTYPES)
@pytest.mark.parametrize(("heads", "head_dim"), [((4, 2), 128), ((6, 2), 64), ((7, 1), 40), ((8, 8), 256)])
def test_a_token_gets_the_same_bits_alone(
    dtype: torch.dtype, kv_dtype: torch.dtype, heads: tuple[int, int], head_dim: int
) -> None:
    lengths = [(1, 511), (16, 500), (3, 254), (2, 1), (9, 60), (1, 1023), (140, 230)]
    drawn = draw(lengths, heads, head_dim, dtype=dtype, kv_dtype=kv_dtype)
    together = drawn.attend()
    for index, (start, segment) in enumerate(zip(drawn.segments.starts, drawn.segments.each, strict=True)):
        for token in range(segment.num_new):
            assert torch.equal(together[start + token], drawn.alone(index, token)), (index, token)


@needs_library
@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_drafts_leave_no_trace_even_if_infinite(kv_dtype: torch.dtype) -> None:
    drawn = draw([(6, 290)], kv_dtype=kv_dtype)
    alone = drawn.alone(0, 2)
    later = drawn.segments.slot_mapping[3:]
    drawn.spoil(later)
    assert torch.equal(drawn.attend()[2], alone)
    assert not drawn.attend()[3:].isfinite().all()


@needs_library
@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("tiles", [False, True])
def test_the_same_bits_on_any_number_of_threads_and_blocks(kv_dtype: torch.dtype, tiles: bool) -> None:
    drawn = draw([(1, 1500), (4, 700), (1, 3), (100, 300)], block_size=16, kv_dtype=kv_dtype)
    drawn = replace(drawn, may_use_tiles=tiles)
    first = drawn.attend()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            assert torch.equal(drawn.attend(), first), threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(laid_out_anew(drawn, 7).attend(), first)


def laid_out_anew(drawn: Pass, block_size: int) -> Pass:
    """The same keys and values in blocks of another size, in another order."""
    lengths = [(segment.num_new, segment.num_past) for segment in drawn.segments.each]
    other = draw(lengths, block_size=block_size, seed=1, kv_dtype=drawn.cache.key.dtype)
    for old, new in zip(drawn.segments.each, other.segments.each, strict=True):
        source = Segments(
            (replace(old, num_new=old.length, num_past=0),), drawn.segments.block_size, torch.device("cpu")
        )
        target = Segments((replace(new, num_new=new.length, num_past=0),), block_size, torch.device("cpu"))
        for to, of in zip(other.cache.tensors.values(), drawn.cache.tensors.values(), strict=True):
            to[target.slot_mapping] = of[source.slot_mapping]
    return replace(other, query=drawn.query, may_use_tiles=drawn.may_use_tiles)


TILED = [(torch.float32, torch.bfloat16), (torch.float32, torch.int8), (torch.bfloat16, torch.bfloat16)]


@needs_library
@pytest.mark.parametrize(("dtype", "kv_dtype"), TILED)
@pytest.mark.parametrize(("heads", "head_dim"), [((4, 2), 128), ((6, 2), 32), ((7, 1), 96), ((16, 2), 256)])
def test_tiles(dtype: torch.dtype, kv_dtype: torch.dtype, heads: tuple[int, int], head_dim: int) -> None:
    """Weights are rounded to bf16, over an int8 cache twice, and their sum is of rounded ones.

    Where the processor has no tiles, this tests the other kernels.
    """
    lengths = [(32, 0), (1, 300), (150, 490), (33, 223), (5, 3), (64, 1000)]
    drawn = draw(lengths, heads, head_dim, dtype=dtype, kv_dtype=kv_dtype)
    tiled = replace(drawn, may_use_tiles=True)
    sizes = replace(drawn, cache=replace(drawn.cache, value=drawn.cache.value.abs())).reference()
    together, right = tiled.attend(), drawn.reference()
    assert ((together - right).abs() <= 3 * 2**-9 * sizes + max(TOLERANCE[dtype], 5e-5)).all()
    for index, (start, segment) in enumerate(zip(drawn.segments.starts, drawn.segments.each, strict=True)):
        rows = together[start : start + segment.num_new]
        assert torch.equal(rows, tiled.part(index, 0, segment.num_new).attend()), "the company makes no difference"
        if segment.num_new < 32:
            assert torch.equal(rows, drawn.part(index, 0, segment.num_new).attend()), "no tiles here"


@needs_library
@pytest.mark.parametrize(("dtype", "kv_dtype"), TILED)
@pytest.mark.parametrize("place", [0, 1, 37, 69])
def test_tiles_keep_later_tokens_out_even_if_infinite(dtype: torch.dtype, kv_dtype: torch.dtype, place: int) -> None:
    drawn = replace(draw([(70, 220)], dtype=dtype, kv_dtype=kv_dtype), may_use_tiles=True)
    before = drawn.attend()
    drawn.spoil(drawn.segments.slot_mapping[place : place + 1])
    after = drawn.attend()
    assert torch.equal(after[:place], before[:place])
    assert not after[place:].isfinite().any()


@needs_library
def test_scores_far_apart() -> None:
    """Weights that vanish, and a maximum that comes in a late chunk."""
    drawn = draw([(1, 900)], head_dim=32)
    drawn.cache.key.mul_(30)
    assert_right(drawn)


@needs_library
def test_callers_at_once() -> None:
    drawn = draw([(1, 1500), (4, 700)])
    expected, results = drawn.attend(), list[bool]()

    def work() -> None:
        results.extend(torch.equal(drawn.attend(), expected) for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 150


FORKING = """
import os, sys, torch
sys.path.insert(0, {folder!r})
from test_paged_attention import draw
torch.set_num_threads(2)
drawn = draw([(1, 1500), (4, 700)])
expected = drawn.attend()
child = os.fork()
if child == 0:
    os._exit(0 if all(torch.equal(drawn.attend(), expected) for _ in range(20)) else 1)
status = os.waitpid(child, 0)[1]
assert torch.equal(drawn.attend(), expected)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork_and_at_exit() -> None:
    script = FORKING.format(folder=os.path.dirname(__file__))
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


def test_a_library_that_lacks_a_kernel_is_refused() -> None:
    import ctypes.util

    with pytest.raises((AttributeError, OSError)):
        CpuLibrary(ctypes.util.find_library("c"))  # type: ignore[arg-type]
