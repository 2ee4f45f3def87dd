"""Runs a function in several processes that form a gloo group."""

import multiprocessing
import os
import pickle
import random
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from codemill.train.parallel import is_lost_connection

_LOST = 3  # the exit status of a process that another one has left
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["codemill.train.adapter", "codemill.train.loop", "codemill.train.parallel_model"])


def run_processes(function: Callable[..., Any], directory: Path, *arguments: Any, num_processes: int = 2) -> list[Any]:
    """What function(*arguments) returns in each process, by rank. It and its results must be picklable."""
    store = directory / f"store-{len(list(directory.glob('store-*')))}"
    results = _CONTEXT.SimpleQueue()
    inputs = (function, arguments, store, num_processes, results)
    processes = [_CONTEXT.Process(target=_run, args=(rank, *inputs)) for rank in range(num_processes)]
    for process in processes:
        process.start()
    # As bytes: tensors would come as shared memory, from processes that have ended.
    found = dict(pickle.loads(results.get()) for _ in processes)
    for process in processes:
        process.join()
    for result in found.values():
        if isinstance(result, _Failure):
            raise AssertionError(result.text)
    return [found[rank] for rank in range(num_processes)]


def run_killed(seconds: float, function: Callable[..., Any], *arguments: Any) -> bool:
    """Let function(*arguments) run for so long in a process of its own, then kill that. False if it had ended."""
    started = _CONTEXT.Event()
    process = _CONTEXT.Process(target=_run_alone, args=(started, function, arguments))
    process.start()
    started.wait()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def run_killed_together(
    draw: random.Random, seconds: tuple[float, float], function: Callable[..., Any], directory: Path, *arguments: Any
) -> bool:
    """The same of two processes in a group: one is killed after so long, and the other must end by itself."""
    store, started = directory / f"store-{len(list(directory.glob('store-*')))}", _CONTEXT.Semaphore(0)
    inputs = (started, function, arguments, store)
    processes = [_CONTEXT.Process(target=_run_until_killed, args=(rank, *inputs)) for rank in range(2)]
    for process in processes:
        process.start()
    for _ in processes:
        started.acquire()
    first, second = draw.sample(processes, 2)
    first.join(draw.uniform(*seconds))
    first.kill()
    second.join(30)
    assert second.exitcode in (0, _LOST), "None: it still waits for the one that was killed"
    first.join()
    assert first.exitcode in (0, -signal.SIGKILL)
    return first.exitcode != 0


def _run_until_killed(
    rank: int, started: Any, function: Callable[..., Any], arguments: tuple[Any, ...], store: Path
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    started.release()
    try:
        function(*arguments)
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        os._exit(_LOST)


def _run_alone(started: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    started.set()
    function(*arguments)


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _run(
    rank: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    store: Path,
    num_processes: int,
    results: Any,
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_processes)
    try:
        result = function(*arguments)
    except BaseException:  # noqa: BLE001
        result = _Failure(traceback.format_exc())
    results.put(pickle.dumps((rank, result)))
    dist.destroy_process_group()
