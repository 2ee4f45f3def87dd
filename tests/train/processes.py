"""Runs a function in several processes that form a gloo group."""

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

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


def run_killed(seconds: float, function: Callable[..., Any], *arguments: Any) -> None:
    """Let function(*arguments) run for so long in a process of its own, then kill that. It may have ended before."""
    started = _CONTEXT.Event()
    process = _CONTEXT.Process(target=_run_alone, args=(started, function, arguments))
    process.start()
    started.wait()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)


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
