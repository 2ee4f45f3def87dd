"""The thread that steps an engine, for as long as there is something to compute, and tells what came of it."""

import atexit
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from codemill.engine.live_request import LiveRequest
from codemill.engine.live_requests import LiveRequests
from codemill.engine.llm import LLM
from codemill.engine.request import Request
from codemill.engine.updates import Event
from codemill.errors import CodemillError

T = TypeVar("T")


@dataclass(frozen=True)
class Command:
    """Something to do between two steps, and what to do instead if the loop has ended."""

    run: Callable[[], None]
    refuse: Callable[[CodemillError], None] = lambda error: None


class EngineLoop:
    """Steps the engine of an `LLM` in one thread of its own, which sleeps while there is nothing to do.

    `on_events` is called in that thread, once after each step that brought news; it must not block. All methods may be
    called from any thread; those of a loop that has ended raise CodemillError. A step that raises ends the requests
    that had begun, with an error each, and the loop goes on with the others.
    """

    def __init__(self, llm: LLM, on_events: Callable[[list[Event]], None]) -> None:
        self._llm = llm
        self._engine = llm.engine
        self._on_events = on_events
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._accepting = threading.RLock()  # the garbage collector may close a request while another one is posted
        self._end_reason: str | None = None
        self._is_stopping = False
        self._live = LiveRequests()
        # A daemon, so that a forgotten loop does not keep the process; ended before the interpreter takes torch apart.
        self._thread = threading.Thread(target=self._run, name="codemill-engine", daemon=True)
        atexit.register(self.close, 0.0)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._end_reason is None

    def submit(
        self, request_id: str, request: Request, deadline_seconds: float | None = None, wants_updates: bool = True
    ) -> None:
        """Queue a request; after `deadline_seconds` it ends with finish_reason "abort", stop_reason "deadline"."""
        deadline = None if deadline_seconds is None else request.start + deadline_seconds
        live = LiveRequest(request_id, request, deadline, wants_updates)
        self._post(Command(lambda: self._add(live), lambda error: self._on_events([(request_id, error)])))

    def abort(self, request_id: str) -> None:
        """End a request with what it has; nothing happens if it has ended. What it computed stays in the cache."""
        self._post(Command(lambda: self._abort(self._live.find(request_id))))

    def call(self, function: Callable[[LLM], T]) -> "Future[T]":
        """Have `function` called in the thread, between two steps -> its result, or what it raised."""
        future: Future[T] = Future()
        self._post(Command(lambda: self._call(function, future), lambda error: _refuse(future, error)))
        return future

    def sleep(self) -> "Future[None]":
        """See `LLM.sleep`; requests wait until `wake`."""
        return self.call(LLM.sleep)

    def wake(self) -> "Future[None]":
        """Be ready again after `sleep`."""
        return self.call(LLM.wake)

    def close(self, timeout: float) -> None:
        """Finish what was submitted, abort what is not done after `timeout` seconds, and end the thread."""
        atexit.unregister(self.close)
        try:
            self._post(Command(self._stop))
            self._thread.join(timeout)
            self._post(Command(self._abort_all))
        except CodemillError:  # it has ended
            pass
        self._thread.join()

    def _post(self, command: Command) -> None:
        with self._accepting:
            if self._end_reason is not None:
                raise CodemillError(self._end_reason)
            self._commands.put(command)

    def _run(self) -> None:
        reason = "the engine's thread has ended because of an error: start it anew"
        try:
            while self._live or not self._is_stopping:
                self._take_commands()
                for live in self._live.overdue():
                    self._abort(live, "deadline")
                if self._can_step:
                    self._step()
                self._live.tell_progress(self._engine.scheduler.waiting)
                self._report()
            reason = "the engine is closed: start it anew"
        finally:
            self._end(reason)

    @property
    def _can_step(self) -> bool:
        return not self._engine.is_asleep and not self._engine.is_idle

    def _take_commands(self) -> None:
        """Do what was asked since the last step; wait for it if there is nothing to compute."""
        try:
            command = self._commands.get(timeout=0.0 if self._can_step else self._live.seconds_left())
            while True:
                command.run()
                command = self._commands.get_nowait()
        except queue.Empty:
            return

    def _step(self) -> None:
        try:
            with self._llm.lock:
                if not self._can_step:  # it was put to sleep meanwhile
                    return
                changed = self._engine.step()
        except Exception as error:  # noqa: BLE001 - whatever a pass raises ends those who ran, and nobody else
            self._fail_started(f"a step of the engine failed: {type(error).__name__}: {error}")
            return
        for sequence in changed:
            live = self._live.owner(sequence)  # None for a sequence of somebody who uses the LLM directly
            if live is None:
                continue
            if sequence.error is not None:
                self._fail(live, sequence.error)
            else:
                self._live.tell(live, sequence)

    def _report(self) -> None:
        events = self._live.take_events()
        if events:
            self._on_events(events)

    def _add(self, live: LiveRequest) -> None:
        self._live.add(live)
        if self._is_stopping:
            self._live.tell_error(live, CodemillError("the engine is closing: send the request to another one"))
            return
        try:
            with self._llm.lock:
                self._engine.add(live.request)
        except CodemillError as error:  # the LLM was closed
            self._live.tell_error(live, error)

    def _abort(self, live: LiveRequest | None, stop_reason: str | None = None) -> None:
        if live is None:
            return
        unfinished = [sequence for sequence in live.request.sequences if sequence.finish_reason is None]
        with self._llm.lock:
            self._engine.abort(live.request, stop_reason)
        for sequence in unfinished:
            self._live.tell(live, sequence)

    def _abort_all(self) -> None:
        for live in self._live.all():
            self._abort(live)

    def _fail_started(self, message: str) -> None:
        """Fail the requests that had begun; if none had, all of them, since the next step would only fail again."""
        live = self._live.all()
        for each in [each for each in live if each.has_started] or live:
            self._fail(each, CodemillError(message))

    def _fail(self, live: LiveRequest, error: CodemillError) -> None:
        with self._llm.lock:
            self._engine.fail(live.request, error)
        self._live.tell_error(live, error)

    def _call(self, function: Callable[[LLM], T], future: "Future[T]") -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            with self._llm.lock:
                future.set_result(function(self._llm))
        except BaseException as error:  # noqa: BLE001 - it belongs to the one who asked
            future.set_exception(error)

    def _stop(self) -> None:
        self._is_stopping = True

    def _end(self, reason: str) -> None:
        """Nobody may wait for a thread that is gone: refuse what was asked, and what will be."""
        with self._accepting:
            self._end_reason = reason
        for live in self._live.all():
            self._live.tell_error(live, CodemillError(reason))
        self._report()
        while not self._commands.empty():
            self._commands.get().refuse(CodemillError(reason))


def _refuse(future: "Future[T]", error: CodemillError) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
