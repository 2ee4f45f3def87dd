"""`run_shell_command`: commands in the workspace, in the sandbox."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from codemill.agent.shell_syntax import parse_command
from codemill.agent.stops import Interrupted
from codemill.agent.tool import Arguments, Observation, Preview, ToolContext, ToolError, ToolSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import Event

    from codemill.sandbox.shell_process import BackgroundProcess
    from codemill.sandbox.shell_types import ShellResult

TIMEOUT = 120.0
LONGEST = 3600.0
WAITED = 1.0  # seconds that a command takes at least if it waits for something
MAX_NEWS = 4000  # characters of what background commands have printed

REASONS = {
    "timeout": "ended after {timeout:g} s: give a longer timeout, or run it in the background",
    "memory": "ended: it took too much memory",
    "processes": "ended: it had too many processes",
    "disk": "ended: it wrote too much",
    "output": "ended: it printed too much",
    "broken": "the sandbox ended with it",
}


class Shell(Protocol):
    """What runs commands; see `codemill.sandbox.workspace_shell`."""

    def run(
        self,
        command: str,
        *,
        cwd: Path | None = None,
        timeout: float = TIMEOUT,
        on_output: "Callable[[str], None] | None" = None,
        cancel: "Event | None" = None,
    ) -> "ShellResult": ...

    def start(self, command: str, *, cwd: Path | None = None) -> "BackgroundProcess": ...

    @property
    def processes(self) -> "Sequence[BackgroundProcess]": ...


class ShellTool:
    """Runs a command to its end, or in the background; there is no state between commands but the files."""

    spec = ToolSpec(
        "run_shell_command",
        "run",
        "Runs bash in the workspace. Each call begins anew; no input; timeout in seconds.",
        {
            "command": {"type": "string"},
            "is_background": {"type": "boolean"},
            "directory": {"type": "string"},
            "timeout": {"type": "number"},
        },
        required=("command",),
    )

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._told: set[int] = set()  # the background processes of whose end the model knows

    def preview(self, arguments: Arguments, context: ToolContext) -> Preview:
        if not arguments["command"].strip():
            raise ToolError("the command is empty")
        return Preview(arguments["command"])

    def run(self, arguments: Arguments, context: ToolContext) -> Observation:
        folder = _folder(arguments, context)
        if arguments.get("is_background"):
            return self._start(arguments["command"], folder)
        timeout = float(arguments.get("timeout") or TIMEOUT)
        if not 0 < timeout <= LONGEST:
            raise ToolError(f"timeout must be above 0 and at most {LONGEST:g} seconds")
        began, waits = time.monotonic(), self._waits(arguments["command"])
        result = self._shell.run(
            arguments["command"], cwd=folder, timeout=timeout, on_output=context.print, cancel=context.cancel
        )
        if result.status == "cancelled":
            raise Interrupted("stopped")
        text = "\n".join([*_lines(result, timeout), *self._news()])
        has_waited = waits and time.monotonic() - began >= WAITED
        return Observation(text, is_error=result.status != "ok", has_waited=has_waited)

    def _waits(self, command: str) -> bool:
        """Whether something goes on meanwhile, here or elsewhere."""
        is_busy = any(process.poll() is None for process in self._shell.processes)
        return is_busy or any(part.name == "sleep" for part in parse_command(command))

    def _start(self, command: str, folder: Path | None) -> Observation:
        process = self._shell.start(command, cwd=folder)
        result = process.wait(1.0)  # what fails at once is told at once
        if result is not None:
            return Observation("\n".join(_lines(result, 0.0)), is_error=result.status != "ok")
        output = process.read_new_output()
        text = f"It runs in the background as process {process.id}; `kill {process.id}` ends it."
        return Observation(f"{text}\n{output}".rstrip())

    def _news(self) -> Iterator[str]:
        """What commands in the background have printed since the last command, and that they have ended."""
        for process in self._shell.processes:
            output, result = process.read_new_output(), process.poll()
            if output:
                yield f"[background process {process.id} printed:]\n{output[-MAX_NEWS:].rstrip()}"
            if result is not None and process.id not in self._told:
                self._told.add(process.id)
                yield f"[background process {process.id} ended with status {result.exit_code}]"


def _folder(arguments: Arguments, context: ToolContext) -> Path | None:
    if not arguments.get("directory"):
        return None
    folder = context.workspace.resolve(arguments["directory"])
    if not folder.is_dir():
        raise ToolError(f"{context.workspace.name(folder)} is no folder")
    return folder


def _lines(result: "ShellResult", timeout: float) -> Iterator[str]:
    yield result.output.rstrip("\n") or "[no output]"
    if result.status in REASONS:
        yield f"[{REASONS[result.status].format(timeout=timeout)}]"
    elif result.exit_code:
        yield f"[exit status {result.exit_code}]"
    if result.detail:
        yield f"[{result.detail}]"
    if result.whole_output is not None:
        yield f"[all of the output is in {result.whole_output}: look at parts of it with a command]"
