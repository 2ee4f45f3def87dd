"""The tools of a response: every kind that can be one becomes a function, and its calls go back as the client knows it.

Functions inside a namespace (codex groups its own and those of MCP servers so) get the namespace before their name.
Custom tools, whose input is free text, become functions with the one parameter `input`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from codemill.errors import UsageError
from codemill.server.unknown import note_unknown

INPUT = "input"  # the parameter of a custom tool
INPUT_SCHEMA = {
    "type": "object",
    "properties": {INPUT: {"type": "string"}},
    "required": [INPUT],
    "additionalProperties": False,
}
Json = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """What a client knows a function as."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


@dataclass(frozen=True)
class OfferedTools:
    """functions: in the form of a chat, under flat names; origins: of these names; echo: the tools that are offered."""

    functions: list[Json] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    echo: list[Json] = field(default_factory=list)

    def origin(self, name: str) -> Origin:
        """What the client knows the function as; a name that the model made up is only a name."""
        return self.origins.get(name) or Origin(name)

    def choice(self, choice: Any) -> Any:
        """A `tool_choice` by flat names."""
        if not isinstance(choice, Mapping):
            return choice
        if choice.get("type") in ("function", "custom"):
            return {"type": "function", "name": self._flat(choice)}
        if choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
            return {**choice, "tools": [{"name": self._flat(tool)} for tool in choice["tools"]]}
        return choice

    def _flat(self, asked: Any) -> str:
        if not isinstance(asked, Mapping):
            return ""
        inner = asked.get("function")
        name, namespace = (inner if isinstance(inner, Mapping) else asked).get("name"), asked.get("namespace")
        matching = (flat for flat, it in self.origins.items() if it.name == name and namespace in (None, it.namespace))
        return next(matching, str(name or ""))


def offer(tools: Sequence[Any] | None) -> OfferedTools:
    """What of a body's tools can be offered to the model; the rest is left out, with a line in the log.

    Raises UsageError for a tool without a name.
    """
    offered = OfferedTools()
    for tool in tools or ():
        kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
        if kind == "namespace":
            inner = tool.get("tools") if isinstance(tool.get("tools"), list) else []
            echo = _add(offered, inner, _name(tool, kind))
            shown = {"type": kind, "name": tool["name"], "description": _text(tool, "description") or ""}
            offered.echo.append({**shown, "tools": echo})
        elif kind in ("function", "custom"):
            offered.echo.extend(_add(offered, [tool]))
        else:
            note_unknown("a tool", kind)
    return offered


def flat_name(name: str, namespace: str | None) -> str:
    """The name that the model sees."""
    if not namespace:
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


def _add(offered: OfferedTools, tools: list[Any], namespace: str | None = None) -> list[Json]:
    """Offer functions and custom tools -> what to tell the client of each."""
    echo = []
    for tool in tools:
        kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
        if kind not in ("function", "custom"):
            note_unknown("a tool", kind)
            continue
        inner = tool.get("function")  # as a chat completion has it
        plain = _custom if kind == "custom" else _function
        function, shown = plain(inner if isinstance(inner, Mapping) else tool)
        name = _name(shown, kind)
        flat = flat_name(name, namespace)
        offered.functions.append({"type": "function", "function": {**function, "name": flat}})
        offered.origins[flat] = Origin(name, namespace, kind == "custom")
        echo.append(shown)
    return echo


def _function(tool: Mapping[str, Any]) -> tuple[Json, Json]:
    """A function for the model, and for the client; what is no text or no schema is left out."""
    parameters = tool.get("parameters")
    shown = {
        "type": "function",
        "name": tool.get("name"),
        "description": _text(tool, "description"),
        "parameters": parameters if isinstance(parameters, Mapping) else None,
        "strict": tool.get("strict") is True,
    }
    return {key: value for key, value in shown.items() if key != "type" and value is not None}, shown


def _custom(tool: Mapping[str, Any]) -> tuple[Json, Json]:
    """As `_function`. The only parameter is the whole input; its grammar is told, not enforced."""
    shown = {"type": "custom", "name": tool.get("name"), "description": _text(tool, "description")}
    parts = [shown["description"] or ""]
    form = tool.get("format")
    form = form if isinstance(form, Mapping) else {}
    definition, syntax = _text(form, "definition"), _text(form, "syntax")
    if definition and syntax:
        shown["format"] = {"type": "grammar", "syntax": syntax, "definition": definition}
        parts.append(f"The input must match this grammar ({syntax}):\n{definition}")
    return {"description": "\n\n".join(part for part in parts if part), "parameters": INPUT_SCHEMA}, shown


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) else None


def _name(tool: Mapping[str, Any], kind: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise UsageError(f"tools: a tool of type {kind} has no name")
    return name
