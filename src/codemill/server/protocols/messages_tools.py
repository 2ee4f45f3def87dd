"""Tools as Anthropic's clients declare them: those of the prompt, and those that a conversation loads on its way."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from codemill.errors import UsageError
from codemill.server.generation import ToolUse
from codemill.server.protocols.conversation import tool_use
from codemill.server.unknown import note_unknown

CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class DeclaredTools:
    """The `tools` of a body.

    A tool with `defer_loading` is not in the prompt until a tool result or a system message refers to it: Claude Code
    declares more of these from turn to turn, and a list that changes at the prompt's beginning would undo all reuse.
    """

    def __init__(self, tools: Sequence[Any] | None) -> None:
        """Raises UsageError for a tool without a name."""
        self._tools: dict[str, dict[str, Any]] = {}
        self._deferred: set[str] = set()
        for i, tool in enumerate(tools or ()):
            self._declare(tool, f"tools.{i}", is_deferred=False)

    def declare(self, tool: Any, place: str) -> None:
        """A tool that a message brings along. The prompt's list stays as it is. Raises UsageError."""
        self._declare(tool, place, is_deferred=True)

    def _declare(self, tool: Any, place: str, is_deferred: bool) -> None:
        if not _is_custom(tool):
            return
        function = _function(tool, place)
        name = _name(function)
        if name in self._tools and not self.is_deferred(name):
            return
        self._tools[name] = function
        if is_deferred or tool.get("defer_loading"):
            self._deferred.add(name)

    def use(self, choice: Mapping[str, Any] | None, loaded: Iterable[str]) -> ToolUse:
        """What may be called; loaded: names of deferred tools that the conversation describes. Raises UsageError."""
        names, choice = set(loaded), choice or {}
        usable = [tool for name, tool in self._tools.items() if not self.is_deferred(name) or name in names]
        use = tool_use(usable, _openai_choice(choice), not choice.get("disable_parallel_tool_use"))
        return replace(
            use,
            tools=[tool for tool in use.tools if not self.is_deferred(_name(tool))],
            loaded=[tool for tool in use.tools if self.is_deferred(_name(tool))],
        )

    def is_deferred(self, name: str) -> bool:
        """Whether the prompt's list of tools is without it."""
        return name in self._deferred

    def description(self, names: Sequence[str]) -> str:
        """Definitions of tools, in the form that Claude Code's ToolSearch announces."""
        lines = [self._line(name) for name in names]
        return "\n".join(["<functions>", *lines, "</functions>"])

    def _line(self, name: str) -> str:
        if name not in self._tools:
            return f"There is no tool {name}."
        function = self._tools[name]["function"]
        known = {key: function[key] for key in ("description", "name", "parameters") if key in function}
        return f"<function>{json.dumps(known, ensure_ascii=False)}</function>"


def _is_custom(tool: Any) -> bool:
    kind = (tool.get("type") or "custom") if isinstance(tool, Mapping) else "custom"
    if kind != "custom":
        note_unknown("a tool", kind)
    return bool(kind == "custom")


def _function(tool: Any, where: str) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str) or not tool["name"]:
        raise UsageError(f"{where}: expected a tool with a name, a description and an input_schema")
    function = {
        "name": tool["name"],
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
        "strict": tool.get("strict"),
    }
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _name(tool: Mapping[str, Any]) -> str:
    return str(tool["function"]["name"])


def _openai_choice(choice: Mapping[str, Any]) -> Any:
    kind = choice.get("type", "auto")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if not isinstance(kind, str) or kind not in CHOICES:
        raise UsageError("tool_choice: its type must be auto, any, tool or none")
    return CHOICES[kind]
