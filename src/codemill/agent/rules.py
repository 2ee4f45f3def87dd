"""What is asked about besides what the approval mode says: files with secrets, and commands by their parts."""

from collections.abc import Callable

from codemill.agent.always_rule import rule_for
from codemill.agent.approval import Verdict
from codemill.agent.command_rules import CommandRules
from codemill.agent.read_only_commands import is_read_only
from codemill.agent.shell_syntax import parse_command
from codemill.agent.tool import Tool, ToolContext, ToolError
from codemill.chat.tool_types import ToolCall

PATHS = ("absolute_path", "file_path", "path")
COMMAND_TOOL = "run_shell_command"  # whose calls are judged by what they run
SECRET = "{name} may hold keys or passwords"
MEMORY = "it is read at the beginning of every session, in all projects"


class ProjectRules:
    """The rules of one project. commands: those for commands."""

    def __init__(self, commands: CommandRules) -> None:
        self._commands = commands
        self._always: set[str] = set()  # kinds of tools that the user allowed for good
        self._trusted: set[str] = set()  # names of tools that need no question

    def judge(self, tool: Tool, call: ToolCall, context: ToolContext) -> Verdict | None:
        """None where nothing is said of the call."""
        secret = _secret(call, context)
        if secret:
            return Verdict("ask", SECRET.format(name=secret), is_secret=True)
        if tool.spec.name == "save_memory":
            return Verdict("ask", MEMORY)
        if call.name == COMMAND_TOOL:
            command = call.arguments["command"]
            judged = self._commands.judge(command)
            only_looks = all(is_read_only(part) for part in parse_command(command))
            return Verdict(judged.action, judged.reason, only_looks=only_looks)
        return Verdict("allow") if tool.spec.kind in self._always or call.name in self._trusted else None

    def trust(self, name: str) -> None:
        """Calls of that tool need no question; commands are judged all the same."""
        self._trusted.add(name)

    def remember(self, tool: Tool, call: ToolCall) -> tuple[str, Callable[[], None]] | None:
        """What "always" would allow."""
        if call.name == COMMAND_TOOL:
            rule = rule_for(call.arguments["command"])
            words = f"commands like `{rule}`" if rule.endswith(":*") else f"the command `{rule}`"
            return (f"{words} in this session", lambda: self._commands.allow(rule)) if rule else None
        if tool.spec.kind == "run":
            return f"all calls of {call.name} in this session", lambda: self.trust(call.name)
        if tool.spec.kind == "edit" and tool.spec.name != "save_memory":
            return "all edits in this session", lambda: self._always.add("edit")
        return None


def _secret(call: ToolCall, context: ToolContext) -> str:
    """The name of a file with secrets that the call is about."""
    paths = [call.arguments[name] for name in PATHS if isinstance(call.arguments.get(name), str)]
    many = call.arguments.get("paths")
    paths += [path for path in many if isinstance(path, str)] if isinstance(many, list) else []
    for path in paths:
        try:
            found = context.workspace.resolve(path)
        except ToolError:
            continue  # the tool will say so
        if context.workspace.is_secret(found) and not found.is_dir():
            return context.workspace.name(found)
    return ""
