"""What the JSON schemas of tools say about a parameter, and the value that a parameter's text means."""

import ast
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from codemill.chat.messages import normalize_tools

JSON_TYPES = frozenset({"string", "integer", "number", "boolean", "object", "array", "null"})
STRING = frozenset({"string"})


class ToolSchemas:
    """The parameters of the tools a model may call; with no tools, nothing is known and every value is a string."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        """Raises UsageError naming a tool that is malformed."""
        functions = [tool["function"] for tool in normalize_tools(tools)]
        self._parameters = {function["name"]: _mapping(function.get("parameters")) for function in functions}

    def knows(self, name: str) -> bool:
        """Whether there is such a function."""
        return name in self._parameters

    @property
    def names(self) -> list[str]:
        """The functions there are."""
        return list(self._parameters)

    def declared(self, name: str) -> frozenset[str] | None:
        """The parameters a function declares; None where that is not known."""
        properties = _mapping(self._parameters.get(name, {}).get("properties"))
        return frozenset(properties) or None

    def required(self, name: str) -> frozenset[str]:
        """The parameters a function cannot do without."""
        required = self._parameters.get(name, {}).get("required")
        return frozenset(map(str, required)) if isinstance(required, list) else frozenset()

    def types(self, name: str, parameter: str) -> frozenset[str]:
        """The JSON types a parameter may have; `string` where the schema does not say."""
        root = self._parameters.get(name, {})
        properties = _mapping(root.get("properties"))
        return schema_types(properties.get(parameter, root.get("additionalProperties")), root) or STRING


def schema_types(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """The JSON types that values of a schema may have, through $ref, anyOf, oneOf, allOf, enum, const and nullable.

    `root` is what references point into. Empty if the schema does not say.
    """
    return _types(schema, root, set())


def _types(schema: Any, root: Mapping[str, Any], followed: set[str]) -> frozenset[str]:
    """`followed` are the references that are already part of the answer."""
    if not isinstance(schema, Mapping):
        return frozenset()
    types = _own_types(schema)
    inner = [part for key in ("anyOf", "oneOf", "allOf") for part in _sequence(schema.get(key))]
    reference = str(schema.get("$ref", ""))
    if reference and reference not in followed:
        followed.add(reference)
        inner.append(_resolve(reference, root))
    for part in inner:
        types |= _types(part, root, followed)
    return types | {"null"} if types and schema.get("nullable") is True else types


def _own_types(schema: Mapping[str, Any]) -> frozenset[str]:
    stated = schema.get("type")
    if stated is not None:
        return frozenset(str(name) for name in _sequence(stated) or [stated]) & JSON_TYPES
    values = [schema["const"]] if "const" in schema else _sequence(schema.get("enum"))
    types = frozenset(_type_of(value) for value in values)
    if not types and "properties" in schema:
        return frozenset({"object"})
    return types or (frozenset({"array"}) if "items" in schema else types)


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """The part of `root` that a `#/...` JSON pointer names, or None."""
    found: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        found = _mapping(found).get(step.replace("~1", "/").replace("~0", "~"))
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float) and not value.is_integer():
        return "number"
    names = {bool: "boolean", int: "integer", float: "integer", str: "string", dict: "object", list: "array"}
    return names[type(value)]


def coerce(text: str, types: frozenset[str]) -> Any:
    """The value that a parameter's text means where `types` are allowed: JSON first, then a Python literal, else text.

    Where a string is allowed the text wins over anything it could be read as, other than a further allowed type.
    """
    if types <= STRING:
        return text
    if types == STRING | {"null"}:
        return None if text == "null" else text
    readings = list(_readings(text.strip()))
    for value in readings:
        if _allowed(value, types - STRING):
            return int(value) if types & {"integer", "number"} == {"integer"} and type(value) is float else value
    return readings[0] if readings and "string" not in types else text


def _allowed(value: Any, types: Iterable[str]) -> bool:
    kind = _type_of(value)
    return kind in types or (kind == "integer" and "number" in types)


def _readings(text: str) -> Iterable[Any]:
    """What the text is as JSON, then as a Python literal, then as a boolean in any case."""
    for read, source in ((load_json, text), (_load_literal, text), (_BOOLEANS.__getitem__, text.lower())):
        value = _attempt(read, source)
        if value is not _NOTHING:
            yield value


_BOOLEANS = {"true": True, "false": False}
_NOTHING = object()
_UNREADABLE = (ValueError, LookupError, SyntaxError, TypeError, RecursionError, MemoryError)


def _attempt(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except _UNREADABLE:
        return _NOTHING


def load_json(text: str) -> Any:
    """JSON with raw line breaks allowed in strings, and without NaN or infinity. Raises ValueError, RecursionError."""
    return _finite(json.loads(text, strict=False, parse_constant=_refuse))


def _load_literal(text: str) -> Any:
    return _finite(json.loads(json.dumps(ast.literal_eval(text), allow_nan=False)))


def _finite(value: Any) -> Any:
    json.dumps(value, allow_nan=False)
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def load_object(text: str) -> dict[str, Any] | None:
    """A JSON object, or a Python dict of the same, or None."""
    for read in (load_json, _load_literal):
        value = _attempt(read, text)
        if isinstance(value, dict):
            return value
    return None
