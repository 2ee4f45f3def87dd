"""Attention over the paged KV cache against its definition, and the C++ kernel's promise of equal bits."""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codemill.kernels import paged_attention
from codemill.kernels.cpu_library import CpuLibrary, load_cpu_library
from codemill.kernels.paged_attention import PagedAttention, paged_attention_reference
from codemill.kernels.segments import Segment, Segments

needs_library = pytest.mark.skipif(
    load_cpu_library() is None, reason="the package was installed without a C++ compiler"
)
# bf16: half a unit in the last place of the result, and as much again for a score near the other side of a rounding.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 2e-3, torch.float64: 1e-6}


@dataclass(frozen=True)
class Pass:
    """Random inputs of a call: query [N, H, K] over caches [C, H_kv, K], with NaN and infinity in slots of nobody."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    segments: Segments

    def attend(self) -> Tensor:
        slots = self.segments.slot_mapping
        new = (self.key_cache[slots], self.value_cache[slots])
        return PagedAttention(self.segments).attend(self.query, *new, self.key_cache, self.value_cache)

    def reference(self) -> Tensor:
        clean = (cache.nan_to_num(0.0, 0.0, 0.0) for cache in (self.key_cache, self.value_cache))
        return paged_attention_reference(self.query, *clean, self.segments)

    def alone(self, index: int, token: int) -> Tensor:
        """One token of one segment in a call of its own, [H, K]: the tokens before it are its past."""
        segment = self.segments.each[index]
        single = replace(segment, num_new=1, num_past=segment.num_past + token)
        row = self.segments.starts[index] + token
        own = replace(self.segments, each=(single,))
        return replace(self, query=self.query[row : row + 1], segments=own).attend()[0]


def draw(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Pass:
    """`lengths` are (new, past) tokens; blocks are scattered at random; heads are (H, H_kv)."""
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
    key_cache, value_cache = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    key_cache[~used], value_cache[~used] = float("nan"), float("inf")
    query = torch.randn(sum(new for new, _ in lengths), heads[0], head_dim, generator=generator).to(dtype)
    return Pass(query, key_cache, value_cache, segments)


def assert_right(drawn: Pass) -> None:
    tolerance = TOLERANCE[drawn.query.dtype]
    torch.testing.assert_close(drawn.attend(), drawn.reference(), atol=tolerance, rtol=tolerance)


LENGTHS = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 600)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    num_kv_heads=st.integers(1, 4),
    group=st.integers(1, 7),
    head_dim=st.sampled_from([8, 16, 24, 64, 80, 128, 256, 12, 264]),
    block_size=st.sampled_from([1, 3, 16, 32, 700]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_equals_the_reference(
    lengths: list[tuple[int, int]],
    num_kv_heads: int,
    group: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    assert_right(draw(lengths, (num_kv_heads * group, num_kv_heads), head_dim, block_size, dtype, seed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    assert_right(draw([(1, 40), (3, 17), (1, 0), (7, 0), (1, 5)], dtype=dtype))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw([(1, 300), (4, 17), (1, 1), (30, 2), (5, 0), (1, 0)])
    with_library = drawn.attend()
    monkeypatch.setattr(paged_attention, "load_cpu_library", lambda: None)
    assert_right(drawn)
    torch.testing.assert_close(drawn.attend(), with_library, atol=2e-6, rtol=2e-6)


def test_a_query_whose_heads_lie_apart() -> None:
    drawn = draw([(1, 30), (3, 300)])
    apart = drawn.query.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(replace(drawn, query=apart).attend(), drawn.attend())


def test_gradients_take_the_differentiable_path() -> None:
    drawn = draw([(2, 30)])
    drawn.query.requires_grad_()
    drawn.attend().sum().backward()
    assert drawn.query.grad is not None


@needs_library
@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [8, 48, 64, 96])
def test_every_variant(monkeypatch: pytest.MonkeyPatch, lanes: int, dtype: torch.dtype, head_dim: int) -> None:
    """Which one runs depends on the processor; where it lacks the instructions, a smaller one takes its place."""
    monkeypatch.setattr(paged_attention, "_LANES", lanes)
    assert_right(draw([(1, 700), (5, 250), (16, 3)], (6, 2), head_dim, dtype=dtype))


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "head_dim"), [((4, 2), 128), ((6, 2), 64), ((7, 1), 40), ((8, 8), 256)])
def test_a_token_gets_the_same_bits_alone(dtype: torch.dtype, heads: tuple[int, int], head_dim: int) -> None:
    drawn = draw([(1, 511), (16, 500), (3, 254), (2, 1), (9, 60), (1, 1023)], heads, head_dim, dtype=dtype)
    together = drawn.attend()
    for index, (start, segment) in enumerate(zip(drawn.segments.starts, drawn.segments.each, strict=True)):
        for token in range(segment.num_new):
            assert torch.equal(together[start + token], drawn.alone(index, token)), (index, token)


@needs_library
def test_drafts_leave_no_trace_even_if_infinite() -> None:
    drawn = draw([(6, 290)])
    alone = drawn.alone(0, 2)
    later = drawn.segments.slot_mapping[3:]
    drawn.key_cache[later], drawn.value_cache[later] = float("nan"), float("inf")
    assert torch.equal(drawn.attend()[2], alone)
    assert not drawn.attend()[3:].isfinite().all()


@needs_library
def test_the_same_bits_on_any_number_of_threads_and_blocks() -> None:
    drawn = draw([(1, 1500), (4, 700), (1, 3)], block_size=16)
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
    other = draw(lengths, block_size=block_size, seed=1)
    for old, new in zip(drawn.segments.each, other.segments.each, strict=True):
        source = Segments(
            (replace(old, num_new=old.length, num_past=0),), drawn.segments.block_size, torch.device("cpu")
        )
        target = Segments((replace(new, num_new=new.length, num_past=0),), block_size, torch.device("cpu"))
        for to, of in ((other.key_cache, drawn.key_cache), (other.value_cache, drawn.value_cache)):
            to[target.slot_mapping] = of[source.slot_mapping]
    return replace(other, query=drawn.query)


@needs_library
def test_scores_far_apart() -> None:
    """Weights that vanish, and a maximum that comes in a late chunk."""
    drawn = draw([(1, 900)], head_dim=32)
    drawn.key_cache.mul_(30)
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
