"""A long run takes no more memory than a short one, though no two of its batches are alike."""

import ctypes
import platform
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

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
from train.test_memory import MOE, SHAPE

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
STEPS, CONTEXT = 30, 512


class _Heap(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in FIELDS)


def heap_in_use() -> float:
    """MB that are allocated and not freed; 0 where only glibc would know."""
    if platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"):
        return 0.0
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


@pytest.mark.parametrize("case", ["dense", "experts"])
def test_new_lengths_leave_nothing_behind(case: str) -> None:
    """oneDNN compiles a product in bf16 for every shape, half a megabyte each: 400 MB in these few steps.

    In a process of its own: what others have compiled would be there already.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        first, last = processes.submit(heap_after_steps, case).result()
    if not last:
        pytest.skip("only glibc says what is allocated")
    assert last - first < 60


def heap_after_steps(case: str) -> tuple[float, float]:
    """MB in use after a few steps, and after many; in the case "experts" an adapter of a mixture learns."""
    torch.set_num_threads(1)
    policy = make_policy({}, lora=False) if case == "dense" else make_policy(MOE, lora=True)
    rng, objective, in_use = np.random.default_rng(0), CrossEntropy(), list[float]()
    for _ in range(STEPS):
        lengths = rng.integers(1, CONTEXT // 3, 3)
        rows = pack([Document.of(rng.integers(0, 64, length)) for length in lengths], CONTEXT, 0)
        batch = Batch.of(rows.take([0]))
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective.loss(policy, batch, objective.counts([batch]))
        loss.value.backward()
        policy.zero_grad()
        in_use.append(heap_in_use())
    return in_use[4], in_use[-1]
