"""Whether a call's arguments are what the tool takes, and how to say that to a model that has to write it anew."""

import json
from collections.abc import Mapping
from typing import Any

from codemill.agent.tool import Tool, ToolError

TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "array": list,
    "object": Mapping,
}


def check_arguments(tool: Tool, arguments: Mapping[str, Any]) -> None:
    """Raise ToolError, with an example of a call, unless the arguments fit the tool's schema."""
    try:
        json.dumps(arguments, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ToolError(f"{tool.spec.name}: half of a character (a surrogate) stands in the arguments") from None
    problem = _problem(tool.spec.parameters, arguments)
    if problem:
        raise ToolError(f"{tool.spec.name}: {problem}. Write the call like this:\n{example_call(tool)}")


def example_call(tool: Tool) -> str:
    """How a call of the tool is written, as Qwen3-Coder writes calls, with the required parameters."""
    required = tool.spec.parameters.get("required", [])
    lines = [f"<parameter={name}>\n{_placeholder(tool.spec.parameters, name)}\n</parameter>" for name in required]
    return "\n".join(["<tool_call>", f"<function={tool.spec.name}>", *lines, "</function>", "</tool_call>"])


def _problem(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    properties = schema.get("properties", {})
    missing = [name for name in schema.get("required", []) if name not in arguments]
    if missing:
        return f"the parameter {missing[0]} is missing"
    for name, value in arguments.items():
        if name not in properties:
            return f"there is no parameter {name}; it takes {', '.join(properties) or 'none'}"
        if problem := _value_problem(properties[name], value):
            return f"the parameter {name} {problem}"
    return ""


def _value_problem(schema: Mapping[str, Any], value: Any) -> str:
    kind = schema.get("type")
    expected = TYPES.get(kind) if isinstance(kind, str) else None
    is_flag = isinstance(value, bool) and kind in ("integer", "number")
    if expected is not None and (not isinstance(value, expected) or is_flag):
        return f"must be of type {kind}, found {json.dumps(value, ensure_ascii=False)[:80]}"
    if "enum" in schema and value not in schema["enum"]:
        return f"must be one of {', '.join(map(str, schema['enum']))}"
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for item in value:
            if problem := _value_problem(schema["items"], item):
                return f"has an item that {problem}"
    if isinstance(value, Mapping) and "properties" in schema:
        return _problem(schema, value)
    return ""


def _placeholder(schema: Mapping[str, Any], name: str) -> str:
    kind = schema.get("properties", {}).get(name, {}).get("type", "string")
    return {"integer": "1", "number": "1", "boolean": "true", "array": "[...]", "object": "{...}"}.get(kind, name)
