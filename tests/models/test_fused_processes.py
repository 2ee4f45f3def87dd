"""The fused decoder among processes, threads and interrupts: right results, and nothing that waits for ever."""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.cpu_product import cpu_product
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.models import CausalLM, load_model
from models.fused_cases import CUTS, make, run

pytestmark = pytest.mark.skipif(load_cpu_library() is None, reason="needs a C++ compiler at installation")

THREADS = 3
PATIENCE = 60  # seconds; a child takes one


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tmp_path: Path) -> CausalLM:
    return make("qwen3_next", "int4", tmp_path)


def in_a_fork(check: Callable[[], bool]) -> bool:
    """What `check` says in a child of this process, which is killed if it hangs.

    PyTorch's own threads do not survive a fork (its operations hang), so it gets none; the library's are to.
    """
    child = os.fork()
    if child == 0:
        status = 2
        try:
            torch.set_num_threads(1)
            torch.get_num_threads = lambda: THREADS
            status = 0 if check() else 1
        finally:
            os._exit(status)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def test_a_forked_child_computes_and_the_parent_goes_on(model: CausalLM) -> None:
    expected = run(model)
    for _ in range(3):
        assert in_a_fork(lambda: torch.equal(run(model), expected))
        assert torch.equal(run(model), expected)


def test_a_child_of_a_child(model: CausalLM) -> None:
    expected = run(model)

    def check() -> bool:
        return torch.equal(run(model), expected) and in_a_fork(lambda: torch.equal(run(model), expected))

    assert in_a_fork(check)


def test_a_fork_while_another_thread_is_in_the_library() -> None:
    """The child has a pool of its own, whatever state the parent's was in."""
    matrix, x = PackedMatrix.quantize(torch.randn(512, 512), 4), torch.randn(64, 512)
    expected, stop = cpu_product(x, matrix), threading.Event()

    def work() -> None:
        while not stop.is_set():
            cpu_product(x, matrix)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert all(in_a_fork(lambda: torch.equal(cpu_product(x, matrix), expected)) for _ in range(10))
    finally:
        stop.set()
        thread.join()
    assert torch.equal(cpu_product(x, matrix), expected)


def compute(folder: Path, target: Path) -> None:
    torch.set_num_threads(1)
    torch.save(run(load_model(folder)), target)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_by_multiprocessing(method: str, tmp_path: Path) -> None:
    from codemill.models.quantize_directory import quantize_model

    make("qwen3", "int8", tmp_path / "original")
    quantize_model(tmp_path / "original", tmp_path / "small", "int8")
    expected = run(load_model(tmp_path / "small"))
    process = multiprocessing.get_context(method).Process(
        target=compute, args=(tmp_path / "small", tmp_path / "logits")
    )
    process.start()
    process.join(PATIENCE)
    process.kill()
    assert process.exitcode == 0
    assert torch.equal(torch.load(tmp_path / "logits"), expected)


def test_ctrl_c_at_any_moment_leaves_a_usable_model(model: CausalLM) -> None:
    expected, rng = run(model), random.Random(0)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    num_interrupts = 0
    try:
        for _ in range(25):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0005, 0.02))
                while True:
                    run(model)
            except KeyboardInterrupt:
                num_interrupts += 1
            assert torch.equal(run(model), expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        torch.set_grad_enabled(True)  # an interrupt in the midst of leaving `no_grad` would leave it on for other tests
    assert num_interrupts == 25


@pytest.mark.parametrize("num_models", [1, 2])
def test_python_threads_at_once(num_models: int, tmp_path: Path) -> None:
    """One of them has the pool's threads; the others compute alone meanwhile."""
    models = [make("qwen3_next", form, tmp_path) for form in ("int4", "int8")][:num_models]
    expected = [run(model) for model in models]
    for model in models:
        model._fused_decoder = None  # the first to come builds it
    barrier = threading.Barrier(4)

    def work(index: int) -> list[Tensor]:
        torch.set_num_threads(THREADS)
        barrier.wait(PATIENCE)
        return [run(models[index % num_models], CUTS) for _ in range(10)]

    with ThreadPoolExecutor(4) as pool:
        results = [future.result(PATIENCE) for future in [pool.submit(work, index) for index in range(4)]]
    for index, found in enumerate(results):
        assert all(torch.equal(each, expected[index % num_models]) for each in found)


def test_more_threads_than_processors_and_than_the_system_has_given_before(model: CausalLM) -> None:
    torch.set_num_threads(1)
    expected = run(model)
    for count in (2, 7, 3, 16, 1):
        torch.set_num_threads(count)
        assert torch.equal(run(model), expected)
