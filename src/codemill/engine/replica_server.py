"""What runs in the process of a replica: an `LLM` and its loop, told what to do through a pipe."""

import os
import queue
import threading
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from codemill.engine.async_engine import load_weights
from codemill.engine.engine_loop import EngineLoop
from codemill.engine.llm import LLM
from codemill.engine.memory import CPU_SHARE
from codemill.engine.replica_messages import (
    Abort,
    Close,
    Control,
    Events,
    Failed,
    FromReplica,
    Ready,
    ReplicaOptions,
    Result,
    Submit,
    ToReplica,
)
from codemill.errors import CodemillError
from codemill.footprint import available_memory
from codemill.models.placement import resolve_device


class Outbox:
    """The sending end of the pipe, for several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: FromReplica) -> None:
        with self._sending:
            self._connection.send(message)


def serve(connection: Connection, messages: "queue.SimpleQueue[ToReplica]", options: ReplicaOptions) -> None:
    """Load the model, and do what `messages` say until one says to close."""
    torch.set_num_threads(options.num_threads)
    outbox = Outbox(connection)
    try:
        llm = LLM(options.model, **_with_cache_size(options))
    except CodemillError as error:
        outbox.send(Failed(error))
        return
    _serve(llm, messages, outbox)


def _serve(llm: LLM, messages: "queue.SimpleQueue[ToReplica]", outbox: Outbox) -> None:
    loop = EngineLoop(llm, lambda events: outbox.send(Events(events)))
    shape = llm.engine.cache.shape
    sizes = llm.max_model_len, shape.max_num_seqs, shape.block_size
    outbox.send(Ready(llm.model.config, llm.generation_config, *sizes))
    while True:
        message = messages.get()
        if not loop.is_alive:
            os._exit(1)  # a new process is started in its place
        match message:
            case Submit():
                _submit(llm, loop, message, outbox)
            case Abort():
                loop.abort(message.request_id)
            case Control():
                _start(loop, message).add_done_callback(partial(_send_result, outbox, message.number))
            case Close():
                loop.close(message.timeout)
                llm.close()
                return


def _submit(llm: LLM, loop: EngineLoop, message: Submit, outbox: Outbox) -> None:
    """Queue a request with the seeds it was given, so that its result is the same in every replica."""
    asked = message.submission
    try:
        adapter = llm.adapters.get(asked.adapter)
        build = llm.builder.build
        request = build(message.prompt, message.params, priority=asked.priority, adapter=adapter, seeds=message.seeds)
    except CodemillError as error:
        outbox.send(Events([(asked.request_id, error)]))
        return
    loop.submit(asked.request_id, request, asked.deadline, asked.wants_updates)


def _start(loop: EngineLoop, control: Control) -> "Future[Any]":
    match control.action:
        case "metrics":
            return loop.call(lambda llm: llm.metrics)
        case "sleep":
            return loop.sleep()
        case "wake":
            return loop.wake()
        case "add_adapter":
            assert control.name is not None
            assert control.directory is not None
            return loop.call(partial(_add_adapter, control.name, control.directory))
        case "remove_adapter":
            assert control.name is not None
            return loop.call(partial(_remove_adapter, control.name))
        case "load_weights":
            assert control.directory is not None
            return loop.call(partial(load_weights, control.directory))


def _add_adapter(name: str, directory: Path, llm: LLM) -> None:
    llm.add_adapter(name, directory)


def _remove_adapter(name: str, llm: LLM) -> None:
    llm.remove_adapter(name)


def _send_result(outbox: Outbox, number: int, done: "Future[Any]") -> None:
    error = done.exception()
    if error is None:
        outbox.send(Result(number, done.result()))
    elif isinstance(error, CodemillError):
        outbox.send(Result(number, error=error))
    else:
        outbox.send(Result(number, error=CodemillError(f"a replica failed: {type(error).__name__}: {error}")))


def _with_cache_size(options: ReplicaOptions) -> dict[str, Any]:
    """The arguments of `LLM`; where they say nothing of it, the replicas share what one would take for its cache."""
    chosen = dict(options.options)
    if chosen.get("kv_cache_bytes") is None and resolve_device(chosen.get("device", "auto")).type == "cpu":
        chosen["kv_cache_bytes"] = int(available_memory() * CPU_SHARE / options.num_replicas)
    return chosen
