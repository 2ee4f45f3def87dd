"""A replica as seen from the process that started it. No torch here."""

import itertools
import multiprocessing
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from codemill.engine.replica_messages import (
    Control,
    ControlAction,
    Events,
    Failed,
    Ready,
    ReplicaOptions,
    Result,
    ToReplica,
)
from codemill.engine.replica_process import run_replica
from codemill.engine.updates import Event
from codemill.errors import CodemillError

GRACE_SECONDS = 5.0  # after which a process that should have ended is killed


class Replica:
    """One process with an `LLM`, from its start to its end; a new one takes the place of one that has died.

    `on_events` and `on_end` are called in a thread of the replica's own. `ready` is done once the model is loaded, or
    cannot be.
    """

    def __init__(
        self,
        number: int,
        options: ReplicaOptions,
        on_events: Callable[[list[Event]], None],
        on_end: Callable[["Replica"], None],
    ) -> None:
        self.number = number
        self.ready: Future[Ready] = Future()
        self.has_ended = False
        self._end_seen = threading.Event()
        self._on_events, self._on_end = on_events, on_end
        self._results: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._outgoing: queue.SimpleQueue[ToReplica | None] = queue.SimpleQueue()
        self._connection, self.process = _start_process(number, options)
        for target in (self._read, self._write):
            threading.Thread(target=target, name=f"codemill-replica-{number}", daemon=True).start()

    @property
    def is_ready(self) -> bool:
        return self.ready.done() and not self.has_ended

    def send(self, message: ToReplica) -> None:
        """Send a message without waiting until it has been taken; one to a replica that has ended is lost."""
        self._outgoing.put(message)

    def control(self, action: ControlAction, directory: Path | None = None, name: str | None = None) -> "Future[Any]":
        """Send a Control -> its result, which fails if the replica ends before."""
        number, future = next(self._numbers), Future[Any]()
        self._results[number] = future
        self.send(Control(number, action, directory, name))
        if self.has_ended:
            self._fail_results()
        return future

    def join(self, timeout: float) -> None:
        """Wait for the end of the process; kill it after `timeout` seconds."""
        if not self._end_seen.wait(timeout):
            self.process.kill()
            self._end_seen.wait()

    def describe_end(self) -> str:
        """Why a replica that has ended did, and what to do."""
        code = self.process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
        return f"replica {self.number} {how} before the work was done: try again"

    # A thread of its own: a pipe that is full blocks, and an event loop must not be.
    def _write(self) -> None:
        for message in iter(self._outgoing.get, None):
            try:
                self._connection.send(message)
            except OSError:  # it has ended, as the reading thread sees too
                return

    def _read(self) -> None:
        try:
            while True:
                self._take(self._connection.recv())
        except (EOFError, OSError):
            self._end()

    def _take(self, message: Any) -> None:
        match message:
            case Events():
                self._on_events(message.events)
            case Ready():
                self.ready.set_result(message)
            case Failed():
                self.ready.set_exception(message.error)
            case Result():
                _settle(self._results.pop(message.number), message)

    def _end(self) -> None:
        self.process.join(GRACE_SECONDS)
        self.process.kill()
        self.process.join()
        self.has_ended = True
        self._outgoing.put(None)
        self._fail_results()
        if not self.ready.done():
            self.ready.set_exception(CodemillError(f"replica {self.number} ended before its model was loaded"))
        self._on_end(self)
        self._end_seen.set()

    def _fail_results(self) -> None:
        for number in list(self._results):
            future = self._results.pop(number, None)
            if future is not None:
                future.set_exception(CodemillError(self.describe_end()))


def _start_process(number: int, options: ReplicaOptions) -> tuple[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_replica, args=(theirs, options), name=f"replica-{number}", daemon=True)
    process.start()
    theirs.close()  # else the end of the process would not end the pipe
    return ours, process


def _settle(future: "Future[Any]", result: Result) -> None:
    if result.error is not None:
        future.set_exception(result.error)
    else:
        future.set_result(result.value)
