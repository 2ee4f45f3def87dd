"""A long run takes no more memory than a short one, though no two of its batches are alike."""

import ctypes
import platform

import numpy as np
import pytest
import torch

from codemill.config import ModelConfig
from codemill.data.packing import Document, pack
from codemill.models import CausalLM
from codemill.models.initialize import initialize
from codemill.train.adapter import TrainableLora
from codemill.train.batch import Batch
from codemill.train.lora_config import LoraSection
from codemill.train.objective import CrossEntropy
from codemill.train.policy import Policy
from train.test_memory import HYBRID, MOE, SHAPE

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
STEPS, CONTEXT = 30, 512


class _Heap(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in FIELDS)


def heap_in_use() -> float:
    """MB that are allocated and not freed."""
    if platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("only glibc says what is allocated")
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Heap
    heap = mallinfo()
    return (heap.uordblks + heap.hblkhd) / 1e6


def make_policy(family: dict[str, object], lora: bool) -> Policy:
    torch.manual_seed(0)
    model = CausalLM(ModelConfig.from_dict({**SHAPE, "num_hidden_layers": 2, **family}, "test"))
    initialize(model, 0)
    if not lora:
        return Policy(model)
    return Policy(model.to(torch.bfloat16).requires_grad_(False), TrainableLora(model, LoraSection(rank=8)))


@pytest.mark.parametrize(
    ("family", "lora"),
    [({}, False), (MOE, False), (MOE, True), (HYBRID, False)],
    ids=["dense", "moe", "moe-lora", "hybrid"],
)
def test_new_lengths_leave_nothing_behind(family: dict[str, object], lora: bool) -> None:
    """oneDNN compiles a product in bf16 for every shape, half a megabyte each: 100 to 300 MB in these few steps."""
    policy, rng = make_policy(family, lora), np.random.default_rng(0)
    objective, in_use = CrossEntropy(), list[float]()
    for _ in range(STEPS):
        lengths = rng.integers(1, CONTEXT // 3, 3)
        rows = pack([Document.of(rng.integers(0, 64, length)) for length in lengths], CONTEXT, 0)
        batch = Batch.of(rows.take([0]))
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective.loss(policy, batch, objective.counts([batch]))
        loss.value.backward()
        policy.zero_grad()
        in_use.append(heap_in_use())
    assert in_use[-1] - in_use[4] < 50
