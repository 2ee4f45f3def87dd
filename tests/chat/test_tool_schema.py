import pytest

from codemill.chat.tool_schema import ToolSchemas, coerce, schema_types
from codemill.chat.tool_value import ValueStream

ROOT = {
    "$defs": {
        "Mode": {"enum": ["r", "w"]},
        "Size": {"type": "integer"},
        "Maybe": {"anyOf": [{"$ref": "#/$defs/Size"}, {"type": "null"}]},
        "Loop": {"$ref": "#/$defs/Loop"},
        "Many": {"anyOf": [*[{"$ref": f"#/$defs/Many/anyOf/{i}"} for i in range(40)], {"type": "string"}]},
        "a/b": {"type": "boolean"},
    }
}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "integer"}, {"integer"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"integer", "null"}),
        ({"oneOf": [{"type": "array"}, {"type": "object"}]}, {"array", "object"}),
        ({"allOf": [{"$ref": "#/$defs/Size"}]}, {"integer"}),
        ({"$ref": "#/$defs/Maybe"}, {"integer", "null"}),
        ({"$ref": "#/$defs/Mode"}, {"string"}),
        ({"$ref": "#/$defs/a~1b"}, {"boolean"}),
        ({"$ref": "#/$defs/Loop"}, set()),
        ({"$ref": "#/nowhere"}, set()),
        ({"anyOf": [{"$ref": "#/$defs/Many"}, {"$ref": "#/$defs/Many"}]}, {"string"}),
        *[(schema, set()) for schema in ({"type": 5}, {"type": [[]]}, {"enum": 5}, {"enum": None}, {"$ref": 5})],
        ({"type": "number", "nullable": True}, {"number", "null"}),
        ({"enum": [1, None, 2.5]}, {"integer", "null", "number"}),
        ({"const": True}, {"boolean"}),
        ({"properties": {}}, {"object"}),
        ({"items": {}}, {"array"}),
        ({"type": "file"}, set()),
        ({}, set()),
        (True, set()),
    ],
)
def test_types_of_a_schema(schema: object, types: set[str]) -> None:
    assert schema_types(schema, ROOT) == types


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("null", {"string"}, "null"),
        ("12", {"string"}, "12"),
        ("null", {"string", "null"}, None),
        ("nullable", {"string", "null"}, "nullable"),
        ("12", {"integer"}, 12),
        (" 12 ", {"integer"}, 12),
        ("3.0", {"integer"}, 3),
        ("twelve", {"integer"}, "twelve"),
        ("1e3", {"number"}, 1000.0),
        ("7", {"number"}, 7),
        ("NaN", {"number"}, "NaN"),
        ("1e999", {"number"}, "1e999"),
        ("true", {"boolean"}, True),
        ("True", {"boolean"}, True),
        ("FALSE", {"boolean"}, False),
        ("null", {"integer"}, None),
        ('{"a": [1, null]}', {"object"}, {"a": [1, None]}),
        ("{'a': (1, None, True)}", {"object"}, {"a": [1, None, True]}),
        ('{"a": "line\nbreak"}', {"object"}, {"a": "line\nbreak"}),
        ("[1, 2", {"array"}, "[1, 2"),
        ("{1, 2}", {"array"}, "{1, 2}"),
        ("__import__('os')", {"array"}, "__import__('os')"),
        ("[" * 100_000, {"array"}, "[" * 100_000),
        ("5", {"integer", "string"}, 5),
        ("five", {"integer", "string"}, "five"),
        ('"quoted"', {"integer", "string"}, '"quoted"'),
        ("[1]", {"array", "string"}, [1]),
        ("{", {"object", "string"}, "{"),
    ],
)
def test_coercion(text: str, types: set[str], value: object) -> None:
    result = coerce(text, frozenset(types))
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("\nx\n", "x"),
        ("x", "x"),
        ("\n\nx\n\n", "\nx\n"),
        ("\r\nx\r\n", "x"),
        ("\r\n\r\nx\r\n\r\n", "\r\nx\r\n"),
        ("\rx\r", "\rx\r"),
        ("\n", ""),
        ("\n\n", ""),
        ("\n\n\n", "\n"),
        ("\r\n", ""),
        ("\r", "\r"),
        ("", ""),
        ("\n  indented\n  ", "  indented\n  "),
    ],
)
def test_one_line_break_at_each_end_is_stripped(raw: str, value: str) -> None:
    for step in (1, 2, len(raw) + 1):
        stream = ValueStream(frozenset({"string"}))
        fragments = [stream.push(raw[i : i + step]) for i in range(0, len(raw), step)]
        last, result = stream.close()
        assert result == value
        assert eval("".join(fragments) + last) == value


def test_a_nullable_string_streams_once_it_cannot_be_null() -> None:
    stream = ValueStream(frozenset({"string", "null"}))
    assert stream.push("\nnul") == ""
    assert stream.push("lify this") == '"nullify this'
    assert stream.close() == ('"', "nullify this")


def test_what_is_known_of_tools() -> None:
    schemas = ToolSchemas([{"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}, {"name": "g"}])
    assert schemas.names == ["f", "g"]
    assert schemas.declared("f") == {"a"}
    assert schemas.declared("g") is None
    assert schemas.types("f", "a") == {"integer"}
    assert schemas.types("f", "other") == {"string"}
    assert not schemas.knows("h")
    free = ToolSchemas([{"name": "f", "parameters": {"additionalProperties": {"type": "integer"}}}])
    assert free.types("f", "any") == {"integer"}
