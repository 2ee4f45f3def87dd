"""JSON schemas of all kinds that clients send, for the tests of grammars."""

import json
from pathlib import Path
from typing import Any

STR, INT, NUM, BOOL, NULL = ({"type": kind} for kind in ("string", "integer", "number", "boolean", "null"))


def object_of(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **more}


def closed(**properties: Any) -> dict[str, Any]:
    return object_of(properties, *properties, additionalProperties=False)


POINT = closed(x=NUM, y=NUM)
TREE = {"$ref": "#/$defs/node", "$defs": {"node": object_of({"v": INT, "left": {"$ref": "#/$defs/node"}}, "v")}}
SCHEMAS: list[Any] = [
    *(STR, INT, NUM, BOOL, NULL, {"type": "array"}, {"type": "object"}, {}, True, "true", '{"type": "integer"}'),
    # numbers
    *({"type": "integer", "minimum": low, "maximum": high} for low, high in ((0, 9), (-5, 17), (99, 1001), (3, 3))),
    *({"type": "integer", "exclusiveMinimum": 3}, {"type": "integer", "exclusiveMaximum": -3}),
    *({"type": "integer", "multipleOf": 7}, {"type": "integer", "minimum": 10, "multipleOf": 5}),
    *({"type": "number", "minimum": -0.5, "maximum": 1.25}, {"type": "number", "exclusiveMinimum": 0}),
    *({"type": "number", "minimum": 1e6}, {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 100}),
    # strings
    *({"type": "string", "minLength": 3}, {"type": "string", "maxLength": 5}),
    *({"type": "string", "minLength": 2, "maxLength": 2}, {"type": "string", "maxLength": 32000}),
    *(
        {"type": "string", "pattern": pattern}
        for pattern in ("^[a-c]{2,4}$", "b", "^x", "y$", "^(ab|cd)+$", "^/[a-z]*$")
    ),
    *({"type": "string", "pattern": "[0-9]-[0-9]", "maxLength": 8}, {"type": "string", "pattern": "^\\d{3}$"}),
    *({"type": "string", "format": form} for form in ("date", "time", "date-time", "email", "uuid", "ipv4", "uri")),
    *(
        {"type": "string", "format": "color"},
        {"type": "string", "format": "hostname"},
        {"type": "string", "format": ""},
    ),
    # values
    *({"enum": ["a", 1, None, True, {"x": [1]}]}, {"enum": ["a/b", 'q"q', "ü", "e\u0301", "\u212b"]}, {"const": "x y"}),
    *({"const": 1.5}, {"const": {"a": [1, {"b": None}]}}, {"type": "string", "enum": ["one", "two"]}),
    *({"type": ["string", "null"], "enum": ["a", None]}, {"const": ""}, {"enum": [0]}),
    # unions
    *({"type": ["string", "null"]}, {"type": ["integer", "boolean", "array"]}, {"anyOf": [INT, NULL]}),
    *(
        {"anyOf": [POINT, {"type": "array", "items": INT}]},
        {"oneOf": [STR, INT]},
        {"oneOf": [{"const": 1}, {"const": 2}]},
    ),
    *({"oneOf": [closed(kind={"const": "a"}, v=INT), closed(kind={"const": "b"}, v=STR)]},),
    *({"allOf": [object_of({"a": INT}, "a"), object_of({"b": STR}, "b")]}, {"allOf": [{"minimum": 3}, INT]}),
    *({"type": "string", "anyOf": [{"minLength": 4}, {"const": "no"}]}, {"type": "integer", "nullable": True}),
    # arrays
    *({"type": "array", "items": BOOL}, {"type": "array", "items": INT, "minItems": 2, "maxItems": 3}),
    *({"type": "array", "maxItems": 0}, {"type": "array", "prefixItems": [STR, INT], "items": False}),
    *({"type": "array", "prefixItems": [NULL], "items": BOOL, "minItems": 1}, {"items": {"enum": [1, 2]}}),
    *({"type": "array", "items": {"type": "array", "items": INT, "maxItems": 2}, "maxItems": 2},),
    # objects
    *(object_of({"a": INT}), object_of({"a": INT}, "a"), object_of({"a": INT, "b": STR}, "b"), POINT),
    *(
        object_of({"a": {}, "b": {"description": "anything"}}, "a", "b"),
        object_of({}, "a"),
        object_of({"a": POINT}, "a"),
    ),
    *({"type": "object", "additionalProperties": INT}, object_of({"a": STR}, "a", additionalProperties=BOOL)),
    *({"type": "object", "patternProperties": {"^n_": INT}, "additionalProperties": False},),
    *(
        {"type": "object", "patternProperties": {"^n_": INT, "^s_": STR}},
        {"properties": {"a": INT}},
        {"required": ["a"]},
    ),
    *({"type": "object", "additionalProperties": False}, {"type": "object", "minProperties": 1}),
    *({"type": "object", "additionalProperties": STR, "maxProperties": 2},),
    *(
        object_of({"a": True, "b": False}, "a"),
        closed(**{"a b": INT, 'q"': STR, "ü.x": BOOL, "$ref": STR, "type": INT}),
    ),
    # references
    *(
        TREE,
        {"$ref": "#/definitions/p", "definitions": {"p": POINT}},
        object_of({"p": {"$ref": "#/properties/q"}, "q": INT}),
    ),
    *(object_of({"next": {"anyOf": [{"$ref": "#"}, NULL]}}, "next"), {"$id": "https://example.org/a", **TREE}),
    *({"$defs": {"a/b": INT, "c~d": STR}, "anyOf": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/c~0d"}]},),
    *({"$ref": "#/$defs/n", "minimum": 5, "$defs": {"n": INT}},),
    # as clients write them
    *({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [INT, STR], "minItems": 2},),
    *(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **POINT},
        {"$schema": "https://example.org/s", **INT},
    ),
    *({"title": "T", "default": 3, "examples": [1], "deprecated": True, "x-order": 2, "unknown": {"a": 1}, **INT},),
    *({"x-guidance": {"whitespace_flexible": False}, **POINT}, {"$comment": "c", "readOnly": True, **STR}),
    *(closed(steps={"type": "array", "items": closed(explanation=STR, output=STR)}, final_answer=STR),),
    *(closed(name=STR, age={"type": ["integer", "null"]}, tags={"type": "array", "items": {"enum": ["a", "b"]}}),),
    *({"type": "string", "contentEncoding": "base64"}, {"type": "object", "propertyNames": {"type": "string"}}),
    *({"if": {"type": "integer"}, "then": {}, "type": "integer"}, {"type": "object", "unevaluatedProperties": {}}),
]


def client_schemas(shared_data: Path) -> list[dict[str, Any]]:
    """Every tool's parameters and every response format in the stored requests of clients."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((shared_data.parent / "clients").glob("*.json")):
        body = json.loads(path.read_text()).get("body") or {}
        tools = [tool.get("function", tool).get("parameters") for tool in body.get("tools") or ()]
        tools.append((body.get("response_format") or {}).get("json_schema", {}).get("schema"))
        found |= {json.dumps(schema): schema for schema in tools if schema}
    return list(found.values())
