"""The terminal: puts the prompt line, the screen and the agent's thread together, and says what keys lead to."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prompt_toolkit.filters import is_searching
from prompt_toolkit.patch_stdout import patch_stdout

from codemill.agent.terminal.activity import Activity
from codemill.agent.terminal.asking import Asking
from codemill.agent.terminal.commands import EXIT, KEYS, command_names, find_command
from codemill.agent.terminal.completion import PromptCompleter, with_folders
from codemill.agent.terminal.ink import Ink
from codemill.agent.terminal.keys import make_keys
from codemill.agent.terminal.look_commands import next_mode
from codemill.agent.terminal.mentions import expand_mentions
from codemill.agent.terminal.prompt_line import PromptLine
from codemill.agent.terminal.safe_text import cut, safe_line
from codemill.agent.terminal.screen import Screen
from codemill.agent.terminal.session_commands import show_where_it_was
from codemill.agent.terminal.shell_line import run_command
from codemill.agent.terminal.status import Status
from codemill.agent.terminal.transcript import Transcript
from codemill.agent.terminal.voice import ScreenVoice
from codemill.agent.terminal.work import Job, Work
from codemill.errors import CodemillError

if TYPE_CHECKING:
    from codemill.agent.model import Model
    from codemill.agent.session import Session
    from codemill.agent.session_store import SessionStore
    from codemill.agent.workbench import AgentOptions

TWICE_SECONDS = 2.0  # within which a second Ctrl-C ends
LEAVE_SECONDS = 10.0  # that a step has to end when the terminal does
MAX_QUEUED = 5  # that are shown


class Terminal:
    """Runs in the thread that makes it; the agent has one of its own."""

    def __init__(self, options: "AgentOptions", model: "Model", session: "Session", store: "SessionStore") -> None:
        self._ink = Ink.from_environment()
        self._status = Status(mode=options.mode)
        self.line = PromptLine(
            PromptCompleter(command_names(), self._files), store.folder / "prompts", lambda: not self.is_asking
        )
        self._screen = Screen(
            self.line.buffer,
            make_keys(self),
            above=self._above,
            prompt=lambda: self._asking.prompt or "> ",
            status=self._status_line,
            moves=lambda: self._work.is_busy,
        )
        self._transcript = Transcript(self._screen.show, lambda: self._screen.columns, self._ink, self._status)
        self._voice = ScreenVoice(
            self._screen,
            self._transcript,
            self._status,
            self._ink,
            keys=KEYS,
            on_end=lambda: self._asking.withdraw(),
            on_prefill=self.line.put,
            on_failure=self._fail,
        )
        self._asking = Asking(self._screen, self._transcript, self.line, self._ink)
        self._work = Work(options, model, session, store, self._asking.approver, self._voice)
        self._hint = ""
        self._last_interrupt = float("-inf")
        self._failure: BaseException | None = None

    # -- its life

    def run(self) -> int:
        """Until the user ends it -> the exit status. Raises what the agent's thread could not go on from."""
        print(self._heading(), flush=True)
        try:
            with patch_stdout():
                status = self._screen.run(self._begin)
        finally:
            self._leave()
        if self._failure is not None:
            raise self._failure
        if self._work.session.requests:
            print(self._ink(f"\ncodemill agent --resume {self._work.session.id}", "dim"))
        return status

    def _begin(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._exit, 128 + number)
        if self._work.session.messages:
            self._work.add(Job("", lambda: show_where_it_was(self._work)))
        self._screen.once_drawn(self._work.start)  # the prompt stands before all else is loaded

    def _leave(self) -> None:
        self._asking.stop()
        if not self._work.close(0.3):
            with contextlib.suppress(OSError):
                print("stopping …", file=sys.stderr, flush=True)
            self._work.close(LEAVE_SECONDS)

    def _exit(self, status: int) -> None:
        app = self._screen.app
        if app.is_running and not app.is_done:
            app.exit(result=status)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._exit(1)

    # -- what keys lead to

    @property
    def is_asking(self) -> bool:
        return self._asking.wants_key

    def send(self) -> None:
        text = self.line.take()
        if self._asking.question is not None:
            self._asking.refuse(text)
        elif text.strip() in EXIT:
            self.end()
        elif text.strip():
            self._take(text)

    def stop(self) -> None:
        if self._asking.go_back():
            return
        if self._asking.stop():
            self._take_back()
        elif self._work.is_busy:
            self._work.stop()
            self._transcript.activity = Activity("stopping")
            self._take_back()

    def interrupt(self) -> None:
        is_second = time.monotonic() - self._last_interrupt < TWICE_SECONDS
        self._last_interrupt = time.monotonic()
        if is_second:
            self.end()
        elif self._work.is_busy:
            self._hint = "Ctrl-C again ends"
            self.stop()
        elif not self.line.is_empty:
            self.line.clear()
        else:
            self._hint = "Ctrl-C again ends"

    def end(self) -> None:
        self._exit(0)

    def answer(self, key: str) -> None:
        self._asking.answer(key)

    def change_mode(self) -> None:
        if self._work.is_open:
            next_mode(self._work)

    # -- what is typed

    def _take(self, text: str) -> None:
        """Do it now, or when what is before it is done."""
        stripped = text.strip()
        try:
            if stripped.startswith("/") and "/" not in stripped.split()[0][1:]:
                self._take_command(stripped)
            elif stripped.startswith("!") and stripped[1:].strip():
                self._work.add(Job(stripped, lambda: run_command(self._work, stripped[1:].strip())))
            else:
                self._work.add(Job(text, lambda: self._run_task(text)))
        except CodemillError as error:
            self._transcript.show_block(self._voice.echo(stripped))
            self._voice.error(str(error))

    def _take_command(self, line: str) -> None:
        command, argument = find_command(line)
        if not command.at_once or not self._work.is_open:
            self._work.add(Job(line, lambda: command.do(self._work, argument)))
            return
        self._transcript.show_block(self._voice.echo(line))
        command.do(self._work, argument)

    def _run_task(self, text: str) -> None:
        expanded = expand_mentions(text, self._work.bench.workspace)
        for name in expanded.names:
            self._voice.note(f"added {name}")
        for problem in expanded.problems:
            self._voice.error(problem)
        self._work.run_task(expanded.text)

    def _take_back(self) -> None:
        """What waited behind a job that is stopped is for the user to change."""
        waiting = [job.text for job in self._work.take_back() if job.text]
        if waiting:
            self.line.put("\n".join(waiting))

    # -- what is shown

    def _heading(self) -> str:
        root = str(self._work.options.root)
        home = os.path.expanduser("~")
        folder = f"~{root[len(home) :]}" if root == home or root.startswith(f"{home}/") else root
        where = self._ink(cut(f"in {safe_line(folder)}", self._screen.columns - 9), "dim")
        return f"{self._ink('Codemill', 'bold')} {where}\n{self._ink('/help shows the commands and keys', 'dim')}"

    def _above(self) -> list[str]:
        """What is not finished, what is waited for, and what waits."""
        columns = self._screen.columns
        lines = self._transcript.live()
        if self._asking.question is not None:
            lines = self._asking.choices(columns)
        elif self._transcript.activity is not None and self._work.is_busy:
            lines = [*lines, *([""] if lines else []), self._activity_line(columns)]
        return [*lines, *self._queued(columns), *([""] if lines or self._work.jobs else [])]

    def _activity_line(self, columns: int) -> str:
        assert self._transcript.activity is not None
        line = cut(self._transcript.activity.line(time.monotonic()), columns)
        hint = " · Esc stops"
        return self._ink(line, "cyan") + (self._ink(hint, "dim") if len(line) + len(hint) <= columns else "")

    def _queued(self, columns: int) -> list[str]:
        texts: Sequence[str] = [safe_line(job.text) for job in self._work.jobs if job.text]
        lines = [self._ink(cut(f"next: {text}", columns), "dim") for text in texts[:MAX_QUEUED]]
        more = len(texts) - MAX_QUEUED
        return [*lines, *([self._ink(f"and {more} more", "dim")] if more > 0 else [])]

    def _status_line(self) -> str:
        self._status.mode = self._work.mode
        if self._hint and time.monotonic() - self._last_interrupt < TWICE_SECONDS:
            return self._ink(self._hint, "yellow")
        if is_searching():
            return ""
        return self._ink(self._status.line(self._screen.columns), "dim")

    def _files(self) -> Sequence[str]:
        """The paths that `@` completes."""
        from codemill.agent.file_index import FileIndex

        if not self._work.is_open:
            return ()
        workspace = self._work.bench.workspace
        return with_folders(workspace.name(path) for path in FileIndex(workspace).paths)
