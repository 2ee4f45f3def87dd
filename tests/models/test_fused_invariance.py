"""With packed weights, or when asked to, a token has the same bits in any company."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.segments import Segment, Segments
from codemill.models import Cache, CausalLM
from codemill.models.context import ForwardContext
from models.fused_cases import make
from models.reference import FAMILIES

pytestmark = pytest.mark.skipif(load_cpu_library() is None, reason="needs a C++ compiler at installation")

BLOCK_SIZE, NUM_BLOCKS, NUM_SEQUENCES, LENGTH = 8, 40, 6, 48
IDS = torch.randint(97, (NUM_SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(1))
KINDS = ["int4", "int8:g64:asym", "fp32", "bf16"]


@cache
def network(family: str, kind: str) -> CausalLM:
    quantization = None if kind in ("fp32", "bf16") else kind
    with TemporaryDirectory() as folder:
        # Columns for several groups, and rows for several blocks.
        model = make(family, quantization, Path(folder), hidden_size=72, intermediate_size=104)
    if quantization is None:
        model.set_batch_invariant()
    return model.to(torch.bfloat16) if kind == "bf16" else model


@dataclass
class Passes:
    """Sequences that advance together, in blocks that lie anywhere."""

    model: CausalLM
    kv_dtype: torch.dtype | None
    first_block: Callable[[int, int], int]

    def __post_init__(self) -> None:
        self.cache = Cache.allocate_blocks(
            self.model.config, NUM_BLOCKS, BLOCK_SIZE, NUM_SEQUENCES, self.model.dtype, kv_dtype=self.kv_dtype
        )
        self.past = [0] * NUM_SEQUENCES
        self.found: list[list[Tensor]] = [[] for _ in range(NUM_SEQUENCES)]

    @torch.no_grad()
    def advance(self, chunks: list[tuple[int, int]]) -> None:
        """One pass over (sequence, number of tokens) pairs."""
        chunks = [(row, min(count, LENGTH - self.past[row])) for row, count in chunks if self.past[row] < LENGTH]
        if not chunks:
            return
        each = tuple(
            Segment(count, self.past[row], [self.first_block(row, i) for i in range(LENGTH // BLOCK_SIZE)], row)
            for row, count in chunks
        )
        ids = torch.cat([IDS[row, self.past[row] : self.past[row] + count] for row, count in chunks])[None]
        segments = Segments(each, BLOCK_SIZE, torch.device("cpu"))
        invariant = self.model.is_batch_invariant
        context = ForwardContext.build(
            self.model.config, self.model.dtype, ids, segments=segments, batch_invariant=invariant
        )
        logits = self.model.logits(self.model.compute(ids, context, self.cache))[0]
        for (row, count), found in zip(chunks, logits.split([count for _, count in chunks]), strict=True):
            self.past[row] += count
            self.found[row].append(found)


@cache
def alone(family: str, kind: str, kv_dtype: torch.dtype | None, row: int) -> Tensor:
    """The logits of a sequence that comes by itself and at once."""
    passes = Passes(network(family, kind), kv_dtype, lambda row, i: i)
    passes.advance([(row, LENGTH)])
    assert passes.model._fused_decoder is not None
    return torch.cat(passes.found[row])


# Of each pass: how many tokens of which sequences. Few tokens and many, as decode and prompts have.
COUNTS = st.one_of(st.integers(1, 2), st.integers(1, 20), st.just(LENGTH))
CHUNKS = st.dictionaries(st.integers(0, NUM_SEQUENCES - 1), COUNTS, min_size=1).map(lambda each: list(each.items()))
SCHEDULES = st.lists(CHUNKS, min_size=1, max_size=12)


@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["kv", "kv8"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(schedule=SCHEDULES, threads=st.integers(1, 3), order=st.randoms(use_true_random=False))
def test_bits_do_not_depend_on_the_company(family, kind, kv_dtype, schedule, threads, order) -> None:
    blocks = order.sample(range(NUM_BLOCKS), NUM_SEQUENCES * LENGTH // BLOCK_SIZE)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        passes = Passes(network(family, kind), kv_dtype, lambda row, i: blocks[row * LENGTH // BLOCK_SIZE + i])
        for chunks in schedule:
            order.shuffle(chunks)
            passes.advance(chunks)
        for row, found in enumerate(passes.found):
            if found:
                expected = alone(family, kind, kv_dtype, row)
                assert torch.equal(torch.cat(found), expected[: passes.past[row]])
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_calls_of_the_model_keep_to_it(tmp_path: Path) -> None:
    """Also where tiles would attend to 32 new tokens at once."""
    model = make("qwen3", None, tmp_path, head_dim=32).to(torch.bfloat16)
    model.set_batch_invariant()
    ids = torch.randint(97, (1, 64), generator=torch.Generator().manual_seed(2))

    def logits(step: int) -> Tensor:
        cache = Cache.allocate(model.config, 1, 64, torch.bfloat16)
        return torch.cat([model(ids[:, i : i + step], cache) for i in range(0, 64, step)], dim=1)

    assert torch.equal(logits(64), logits(16))
