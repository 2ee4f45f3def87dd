"""The thread in which the agent works: it does one job after the other, and is told when to stop."""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from codemill.agent.approval import Approver, Mode
from codemill.agent.events import CallDone, Event, Notice, ReplyDone
from codemill.agent.stops import Stop
from codemill.agent.tool import ToolError
from codemill.errors import CodemillError

if TYPE_CHECKING:
    from codemill.agent.model import Model
    from codemill.agent.session import Session
    from codemill.agent.session_store import SessionStore
    from codemill.agent.terminal.status import Status
    from codemill.agent.workbench import AgentOptions, Workbench


@dataclass(frozen=True)
class Job:
    """Something to do. text: what the user typed for it. what: how it is called while it is done.

    may_be_left: it need not end before the program does.
    """

    text: str
    do: Callable[[], None]
    what: str = "working"
    may_be_left: bool = False


class Voice(Protocol):
    """How the work reaches the screen, from its own thread."""

    status: "Status"
    keys: str  # what keys do, in Markdown

    def event(self, event: Event) -> None:
        """Something happened."""

    def begin(self, job: Job) -> None:
        """A job begins."""

    def end(self) -> None:
        """It has ended."""

    def say(self, text: str) -> None:
        """Show Markdown."""

    def diff(self, name: str, verb: str, diff: str) -> None:
        """Show how a file has changed; an empty diff for one that is no text."""

    def note(self, text: str) -> None:
        """Show a remark, in a line."""

    def error(self, text: str) -> None:
        """Show what went wrong."""

    def prefill(self, text: str) -> None:
        """Put something into the prompt line, for the user to change."""

    def measured(self, context_tokens: int, num_processes: int) -> None:
        """How long the conversation is, and how many commands run in the background."""

    def opened(self, model: str, context_length: int | None) -> None:
        """The model is known."""

    def failed(self, error: BaseException) -> None:
        """Nothing can go on."""


class Work:
    """Has the workbench of the present session. Everything but `add`, `stop` and `close` happens in its thread."""

    def __init__(
        self,
        options: "AgentOptions",
        model: "Model",
        session: "Session",
        store: "SessionStore",
        approver: Approver,
        voice: Voice,
    ) -> None:
        self.options, self.model, self.store, self.voice = options, model, store, voice
        self.session = session
        self.jobs: list[Job] = []
        self.current: Job | None = None
        self._approver = approver
        self._stack = ExitStack()
        self._bench: Workbench | None = None
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="agent", daemon=True)

    @property
    def bench(self) -> "Workbench":
        """The present workbench; there is one whenever a job is done."""
        assert self._bench is not None
        return self._bench

    @property
    def mode(self) -> Mode:
        return self._bench.gate.mode if self._bench is not None else self.options.mode

    @property
    def is_busy(self) -> bool:
        return self.current is not None

    @property
    def is_open(self) -> bool:
        """Whether there is a workbench yet."""
        return self._bench is not None

    def start(self) -> None:
        """Begin: open the workbench, load the model, then wait for jobs."""
        self._thread.start()

    def add(self, job: Job) -> None:
        """Do this after all that waits already."""
        with self._changed:
            self.jobs.append(job)
            self._changed.notify()

    def take_back(self) -> Sequence[Job]:
        """The jobs that wait, which are not done now."""
        with self._changed:
            jobs, self.jobs = self.jobs, []
        return jobs

    def stop(self) -> None:
        """Stop the present job."""
        if self._bench is not None:
            self._bench.cancel.set()

    def close(self, seconds: float) -> bool:
        """Stop, and leave the thread; whether it has ended, or need not."""
        with self._changed:
            self._is_closing = True
            self.jobs.clear()
            self._changed.notify()
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(0.0 if self._may_be_left else seconds)
        if self._thread.is_alive() and not self._may_be_left:
            return False
        self._stack.close()
        return True

    @property
    def _may_be_left(self) -> bool:
        current = self.current
        return current is not None and current.may_be_left

    def use(self, model: "Model") -> None:
        """Go on with another model."""
        self.model = model
        self.bench.use(model)
        self._load_model()

    def switch(self, session: "Session") -> None:
        """Go on with another session. Commands in the background end with the one before."""
        from codemill.agent.workbench import Workbench

        mode = self.mode
        self._stack.close()
        if session is not self.session:
            self.session.close()
        self.session = session
        self._stack = ExitStack()
        folder = self.store.snapshots_folder
        workbench = Workbench(self.options, self.model, session, self._approver, self.listen, folder)
        self._bench = self._stack.enter_context(workbench)
        self._bench.gate.mode = mode
        self.measure()

    def run_task(self, text: str | None) -> None:
        """Have the agent work on something; None: where it was left."""
        outcome = self.bench.agent.run(text)
        if outcome.status != "finished":
            self.voice.event(Notice(outcome.text))

    def listen(self, event: Event) -> None:
        """Pass on what happens."""
        self.voice.event(event)
        if isinstance(event, ReplyDone) and event.usage.total_tokens:
            self.voice.measured(event.usage.total_tokens, self._num_processes())
        elif isinstance(event, CallDone):
            self.measure()

    def measure(self) -> None:
        """Tell how long the conversation is."""
        from codemill.agent.compaction import conversation_tokens

        self.voice.measured(conversation_tokens(self.session), self._num_processes())

    def _num_processes(self) -> int:
        return sum(process.poll() is None for process in self.bench.shell.processes)

    def _work(self) -> None:
        try:
            self.switch(self.session)
            self.do(self.first_job)
            while (job := self._next()) is not None:
                self.do(job)
            self._stack.close()
        except BaseException as error:  # noqa: BLE001 - the screen's thread raises it
            self.voice.failed(error)

    def _load_model(self) -> None:
        self.voice.opened(self.model.name, None)
        self.voice.opened(self.model.name, self.model.context_length)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self.jobs or self._is_closing)
            return None if self._is_closing else self.jobs.pop(0)

    @property
    def first_job(self) -> Job:
        return Job("", self._load_model, "loading the model", may_be_left=True)

    def do(self, job: Job) -> None:
        """Do it now, in this thread."""
        self.bench.cancel.clear()
        if self._is_closing:  # since just now: that must not be lost
            return
        self.current = job
        self.voice.begin(job)
        try:
            job.do()
        except Stop as stop:
            self.voice.event(Notice(stop.message or "stopped"))
        except (CodemillError, ToolError, OSError) as error:
            self.voice.error(str(error))
        finally:
            self.current = None
            self.voice.end()
