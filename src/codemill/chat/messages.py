"""Brings the messages and tools that clients send into the one form that chat templates understand."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from codemill.errors import UsageError

ROLES = ("system", "user", "assistant", "tool")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # clients differ; templates read the first


def normalize_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as plain dicts: known roles, text content, call arguments as mappings. The input is left as it is.

    `developer` becomes `system`, a list of text parts is joined, missing content becomes "", arguments given as a JSON
    string (OpenAI clients) are parsed. Raises UsageError naming the message and what is wrong with it.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise UsageError(f"messages: expected a list of messages, found {type(messages).__name__}")
    if not messages:
        raise UsageError("messages: the conversation is empty; give at least one message")
    return [_message(message, f"message {i}") for i, message in enumerate(messages)]


def normalize_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Tools as `{"type": "function", "function": {...}}`, bare functions wrapped, null fields left out; None is [].

    Raises UsageError naming the tool that is not a mapping or has no name.
    """
    if tools is not None and (isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence)):
        raise UsageError(f"tools: expected a list of tools, found {type(tools).__name__}")
    return [_tool(tool, f"tool {i}") for i, tool in enumerate(tools or ())]


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UsageError(f"{where}: expected a mapping with role and content, found {type(message).__name__}")
    plain = _plain_mapping(message, where)
    plain["role"] = _role(plain.get("role"), where)
    plain["content"] = _text(plain.get("content"), where)
    reasoning = next((plain[key] for key in REASONING_KEYS if plain.get(key) is not None), None)
    if reasoning is not None:
        plain["reasoning_content"] = reasoning
    if "tool_calls" in plain:
        plain["tool_calls"] = _tool_calls(plain["tool_calls"], where)
    return plain


def _role(role: Any, where: str) -> str:
    if role == "developer":
        return "system"
    if role not in ROLES:
        raise UsageError(f"{where}: unknown role {role!r}; use one of {', '.join(ROLES)}")
    return str(role)


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(part, where) for part in content)
    raise UsageError(f"{where}: content must be text or a list of text parts, found {type(content).__name__}")


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise UsageError(f"{where}: a content part of type {kind!r} is not text, and this model reads only text")


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list | None):
        raise UsageError(f"{where}: tool_calls must be a list, found {type(calls).__name__}")
    return [_tool_call(call, f"{where}, tool call {i}") for i, call in enumerate(calls or ())]


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UsageError(f"{where}: expected a function with a name and arguments")
    function = {**function, "arguments": _arguments(function.get("arguments"), where)}
    return {**call, "function": function} if "function" in call else function


def _arguments(arguments: Any, where: str) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise UsageError(f"{where}: the arguments are not valid JSON: {error}") from error
    arguments = arguments or {}
    if not isinstance(arguments, dict):
        raise UsageError(f"{where}: the arguments must be a JSON object, found {type(arguments).__name__}")
    return arguments


def _tool(tool: Any, where: str) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError(f"{where}: expected a function with a name, a description and parameters")
    plain = {key: value for key, value in _plain_mapping(function, where).items() if value is not None}
    if function is not tool:
        return {**_plain_mapping(tool, where), "function": plain}
    if plain.get("type") == "function":
        del plain["type"]
    return {"type": "function", "function": plain}


def _plain_mapping(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
    return {str(key): _plain(item, where) for key, item in value.items()}


def _plain(value: Any, where: str) -> Any:
    """A copy made of JSON types only: a template must never get its hands on an object with methods of its own."""
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, Mapping):
        return _plain_mapping(value, where)
    if isinstance(value, (list, tuple)):
        return [_plain(item, where) for item in value]
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value)
    raise UsageError(f"{where}: a value of type {type(value).__name__} is not JSON")
