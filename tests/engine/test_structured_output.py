"""What a request may ask for, and that what is wrong is said in one line that names the field."""

from typing import Any

import pytest

from codemill.engine.structured_output import StructuredOutput, ToolCallSpec
from codemill.errors import UsageError

TOOLS = [{"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "exactly one of json_schema"),
        ({"regex": "a", "lark": "start: "}, "['regex', 'lark']"),
        ({"json_object": True, "json_schema": {}}, "['json_schema', 'json_object']"),
        ({"json_object": "yes"}, "json_object = 'yes'"),
        ({"json_schema": "{"}, "json_schema: not valid JSON"),
        ({"json_schema": "[]"}, "json_schema: must be an object or a boolean, found list"),
        ({"json_schema": False}, "json_schema = False"),
        ({"json_schema": {"const": {1, 2}}}, "json_schema: not JSON"),
        ({"regex": 5}, "regex = 5"),
        ({"choice": []}, "choice = []"),
        ({"choice": "abc"}, "choice = 'abc'"),
        ({"choice": ["a", 1]}, "choice = ['a', 1]"),
        ({"lark": ["start: "]}, "lark = "),
        ({"tools": TOOLS}, "for_tools"),
    ],
)
def test_wrong_requests_are_one_line_that_names_the_field(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        StructuredOutput(**arguments)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"tools": TOOLS, "style": "xml"}, "style = 'xml'"),
        ({"tools": TOOLS, "choice": "write"}, "'write': must be auto, required, or one of read"),
        ({"tools": [], "choice": "required"}, "there are no tools"),
        ({"tools": [{"function": {}}]}, "expected a function with a name"),
    ],
)
def test_wrong_tool_requests_name_the_field(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        StructuredOutput.for_tools(**arguments)


def test_equal_requests_have_equal_keys_and_different_ones_do_not() -> None:
    schema = {"type": "object", "properties": {"a": {}, "b": {}}}
    different = [
        StructuredOutput(json_schema=schema),
        StructuredOutput(
            json_schema={"type": "object", "properties": {"b": {}, "a": {}}}
        ),  # another order of the output
        StructuredOutput(json_schema=True),
        StructuredOutput(json_object=True),
        StructuredOutput(regex="a"),
        StructuredOutput(lark="a"),
        StructuredOutput(choice=["a"]),
        StructuredOutput.for_tools(TOOLS),
        StructuredOutput.for_tools(TOOLS, "required"),
        StructuredOutput.for_tools(TOOLS, "read"),
        StructuredOutput.for_tools(TOOLS, style="hermes"),
        StructuredOutput.for_tools(TOOLS, parallel=False),
        StructuredOutput.for_tools(TOOLS, answer=schema),
    ]
    assert len({output.key for output in different}) == len(different)
    assert len(set(different)) == len(different)
    text = '{"type": "object", "properties": {"a": {}, "b": {}}}'
    assert StructuredOutput(json_schema=text).key == StructuredOutput(json_schema=schema).key
    described = [{"type": "function", "function": {**TOOLS[0]["function"], "description": "Reads."}}]  # type: ignore[dict-item]
    assert StructuredOutput.for_tools(described).key == StructuredOutput.for_tools(TOOLS).key


def test_a_key_is_the_same_in_every_process() -> None:
    expected = "9e1dcfd37fb23a2fca28234013489e59"
    assert StructuredOutput(regex="[a-z]+").key[:32] == expected


def test_tools_come_with_or_without_their_wrapper() -> None:
    spec = ToolCallSpec([{"name": "read"}, {"type": "function", "function": {"name": "write"}}])
    assert spec.names == ["read", "write"]


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "strin"}, "#/type = 'strin'"),
        ({"properties": {"a": {"type": "float"}}}, "#/properties/a/type = 'float'"),
        ({"items": {"anyOf": [{"type": "null"}, {"type": ["string", "int"]}]}}, "#/items/anyOf/1/type = 'int'"),
        ({"$defs": {"x": {"prefixItems": [{"type": "any"}]}}}, "#/$defs/x/prefixItems/0/type = 'any'"),
        ('{"additionalProperties": {"type": "String"}}', "#/additionalProperties/type = 'String'"),
    ],
)
def test_a_type_that_there_is_not_is_named(schema: Any, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        StructuredOutput(json_schema=schema)
    assert str(caught.value) == (
        f"json_schema: {named}: there is no such type; choose array, boolean, integer, null, number, object, string"
    )


def test_what_is_no_type_may_have_any_name() -> None:
    schema = {"properties": {"type": {"enum": ["strin"]}}, "default": {"type": "x"}, "x-note": {"type": "x"}}
    assert StructuredOutput(json_schema=schema).schema == schema
