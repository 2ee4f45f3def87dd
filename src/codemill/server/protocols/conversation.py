"""Messages and tools as clients send them, brought into the one form that `chat` takes.

Clients keep whatever a model once wrote, so that what is odd in an old message must not end the conversation.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from codemill.chat.messages import normalize_tools
from codemill.errors import UsageError
from codemill.server.generation import ToolUse
from codemill.server.unknown import note_unknown

OLD_ROLES = {"function": "tool"}


def clean_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages that `normalize_messages` takes; what else is wrong with them it will say."""
    return [_message(message) if isinstance(message, Mapping) else message for message in messages]


def tool_use(tools: Sequence[Any] | None, choice: Any = None, parallel: bool | None = None) -> ToolUse:
    """What a body says of tools, in OpenAI's form. Tools of unknown types are dropped, with a line in the log.

    Raises UsageError for a tool without a name, and for a choice that means nothing.
    """
    known = [tool for tool in tools or () if _is_function(tool)]
    functions = normalize_tools(known)
    name, allowed = _choice(choice)
    if allowed is not None:
        functions = [tool for tool in functions if tool["function"]["name"] in allowed]
    names = [tool["function"]["name"] for tool in functions]
    if name == "required" and not names:
        raise UsageError("tool_choice: a call is required, but there are no tools of type function")
    if name not in ("auto", "none", "required", *names):
        raise UsageError(f"tool_choice: no tool is called {name!r}")
    strict = any(tool["function"].get("strict") is True for tool in functions)
    return ToolUse([_without_strict(tool) for tool in functions], name, parallel is not False, strict)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    plain = dict(message)
    role = plain.get("role")
    if isinstance(role, str):
        plain["role"] = OLD_ROLES.get(role, role)
    if isinstance(plain.get("content"), list):
        plain["content"] = [_part(part) for part in plain["content"]]
    old_call = plain.pop("function_call", None)
    if isinstance(old_call, Mapping) and not plain.get("tool_calls"):
        plain["tool_calls"] = [{"type": "function", "function": old_call}]
    calls = plain.get("tool_calls")
    if isinstance(calls, list):
        plain["tool_calls"] = [_call(call) for call in calls if isinstance(call, Mapping)]
    elif "tool_calls" in plain:
        del plain["tool_calls"]
    return plain


def _part(part: Any) -> Any:
    if isinstance(part, Mapping) and part.get("type") == "refusal":
        return {"type": "text", "text": str(part.get("refusal") or "")}
    return part


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call of an older turn; arguments that are no JSON object, such as those of a cut answer, become one."""
    custom = call.get("custom")
    function = call.get("function") or ({"name": custom.get("name")} if isinstance(custom, Mapping) else call)
    if not isinstance(function, Mapping):
        return dict(call)
    given = custom.get("input") if isinstance(custom, Mapping) else function.get("arguments")
    return {**call, "function": {**function, "arguments": as_arguments(given)}}


def as_arguments(given: Any) -> dict[str, Any]:
    """A call's arguments as an object; anything else is its only member, `arguments`."""
    value = given
    if isinstance(given, str):
        try:
            value = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError):
            return {"arguments": given}
    if value is None:
        return {}
    return dict(value) if isinstance(value, Mapping) else {"arguments": value}


def _is_function(tool: Any) -> bool:
    kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
    if kind != "function":
        note_unknown("a tool", kind)
    return kind == "function"


def _without_strict(tool: dict[str, Any]) -> dict[str, Any]:
    """The model is not told: it would be one more word in each prompt."""
    function = {key: value for key, value in tool["function"].items() if key != "strict"}
    return {"type": "function", "function": function}


def _choice(choice: Any) -> tuple[str, set[str] | None]:
    """The choice, and the names that it allows where it says so. Raises UsageError."""
    if choice is None:
        return "auto", None
    if isinstance(choice, str):
        return {"any": "required"}.get(choice, choice), None
    if isinstance(choice, Mapping):
        if choice.get("type") == "allowed_tools":
            inner = choice.get("allowed_tools", choice)
            tools = inner.get("tools") if isinstance(inner, Mapping) else None
            if isinstance(tools, list):
                return str(inner.get("mode", "auto")), {_name(tool) for tool in tools}
        if choice.get("type") in ("function", None) and _name(choice):
            return _name(choice), None
        if choice.get("type") in ("auto", "none", "required"):
            return str(choice["type"]), None
    raise UsageError("tool_choice: must be auto, none, required, or name a function")


def _name(tool: Any) -> str:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    return str(inner.get("name") or "") if isinstance(inner, Mapping) else ""
