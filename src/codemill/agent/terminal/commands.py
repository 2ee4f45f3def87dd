"""The slash commands: their names, what they do, and which of them wait until the agent is done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from codemill.agent.terminal import look_commands, session_commands, undo_commands
from codemill.agent.terminal.work import Work
from codemill.errors import UsageError

KEYS = """\
- `Enter` sends; `Alt-Enter`, or `\\` at the end of a line, begins a new line; `Ctrl-X Ctrl-E` opens `$EDITOR`
- `Esc` or `Ctrl-C` stops the agent, and the session stays; `Ctrl-C` twice or `Ctrl-D` ends
- `Shift-Tab` changes the mode; `Ctrl-R` searches what was typed before
- `@path` adds a file or a folder's list to the message; `!command` runs a command in the sandbox
- what is typed while the agent works is sent when it is done"""


@dataclass(frozen=True)
class Command:
    """argument: how its argument is shown, empty if it takes none. at_once: it need not wait for the agent."""

    name: str
    help: str
    do: Callable[[Work, str], None]
    argument: str = ""
    at_once: bool = False

    @property
    def usage(self) -> str:
        return f"{self.name} {self.argument}".rstrip()


def show_help(work: Work, argument: str) -> None:
    """The commands and the keys."""
    lines = [f"| `{command.usage}` | {command.help} |" for command in COMMANDS]
    work.voice.say("\n".join(["| command | |", "|---|---|", *lines]))
    work.voice.say(work.voice.keys)


COMMANDS: Sequence[Command] = (
    Command("/help", "shows this", show_help, at_once=True),
    Command("/mode", "shows or sets the mode: plan, default, auto-edit, yolo", look_commands.mode, "[MODE]", True),
    Command("/undo", "takes the last request back, with all its changes", undo_commands.undo),
    Command("/redo", "takes the last undo back", undo_commands.redo),
    Command("/rewind", "goes back to before a step; without a number lists them", undo_commands.rewind, "[STEP]"),
    Command("/diff", "shows what has changed since the session began", undo_commands.diff),
    Command("/todos", "shows the list of what is to be done", look_commands.todos, at_once=True),
    Command("/clear", "begins a new session", session_commands.clear),
    Command("/sessions", "lists the sessions of this folder", session_commands.sessions, at_once=True),
    Command("/resume", "goes on with a session, or with the one before", session_commands.resume, "[ID]"),
    Command("/fork", "goes on in a copy, and leaves this session as it is", session_commands.fork),
    Command("/compress", "replaces the conversation by a summary", session_commands.compress),
    Command("/export", "writes the conversation as Markdown", session_commands.export, "FILE"),
    Command("/init", "has the agent write an AGENTS.md for this project", session_commands.init),
    Command("/memory", "shows what the agent is told in each session", look_commands.memory, at_once=True),
    Command("/permissions", "shows what is allowed, asked and denied", look_commands.permissions, at_once=True),
    Command("/model", "shows the model, or chooses another one of the server", look_commands.model, "[NAME]"),
    Command("/cost", "shows the tokens and the time that were used", look_commands.cost, at_once=True),
)
EXIT = ("/exit", "/quit")


def find_command(line: str) -> tuple[Command, str]:
    """The command of a line and its argument; a beginning that fits only one is enough. Raises UsageError."""
    name, _, argument = line.strip().partition(" ")
    exact = [command for command in COMMANDS if command.name == name]
    found = exact or [command for command in COMMANDS if command.name.startswith(name)]
    if len(found) != 1 or name == "/":
        names = ", ".join(command.name for command in found) if found and name != "/" else "/help lists them"
        raise UsageError(f"{'there is no command' if not found else 'which command is'} {name}: {names}")
    command = found[0]
    if argument.strip() and not command.argument:
        raise UsageError(f"{command.name} takes no argument")
    return command, argument.strip()


def command_names() -> list[tuple[str, str]]:
    """For completion: names and what they do."""
    return [*((command.name, command.help) for command in COMMANDS), ("/exit", "ends; the session is kept")]
