import copy
import enum

import pytest

from chat.chat_cases import CASES
from chat.chat_checks import one_line
from codemill.chat import normalize_messages, normalize_tools
from codemill.errors import UsageError


def call(arguments: object) -> list[dict]:
    return [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]},
    ]


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([{"role": "user", "content": "a"}, {"role": "wizard", "content": "b"}], "message 1: unknown role 'wizard'"),
        ([{"content": "a"}], "message 0: unknown role None"),
        ([{"role": "user", "content": "a"}, "b"], "message 1: expected a mapping"),
        ([None], "message 0: expected a mapping"),
        ([{"role": "user", "content": 3}], "message 0: content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "message 0: .*image_url"),
        ([{"role": "user", "content": [7]}], "message 0: .*int"),
        ([{"role": "user", "content": {"a": object()}}], "message 0: .*object"),
        (call("{not json"), "message 1, tool call 0: .*JSON"),
        (call("[1]"), "message 1, tool call 0: .*object"),
        (call(3), "message 1, tool call 0"),
        ([{"role": "assistant", "tool_calls": [{}]}], "message 0, tool call 0"),
        ([{"role": "assistant", "tool_calls": ["f"]}], "message 0, tool call 0"),
        ([{"role": "assistant", "tool_calls": {}}], "message 0: tool_calls"),
        ([], "empty"),
        ("hello", "messages: .*str"),
        ({"role": "user"}, "messages: .*dict"),
    ],
)
def test_malformed_messages_are_named(messages: object, where: str) -> None:
    with pytest.raises(UsageError, match=where) as caught:
        normalize_messages(messages)  # type: ignore[arg-type]
    one_line(caught)


@pytest.mark.parametrize(
    "tools", [["f"], [{}], [{"function": {}}], {"name": "f"}, "f", [{"type": "function", "function": 3}]]
)
def test_malformed_tools_are_named(tools: object) -> None:
    with pytest.raises(UsageError, match="tool") as caught:
        normalize_tools(tools)  # type: ignore[arg-type]
    one_line(caught)


@pytest.mark.parametrize(
    ("given", "expected"), [("", {}), (" ", {}), (None, {}), ('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1})]
)
def test_arguments_become_mappings(given: object, expected: dict) -> None:
    message = normalize_messages(call(given))[1]
    assert message["content"] == ""
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": expected}


def test_bare_calls_and_tools() -> None:
    messages = [{"role": "assistant", "content": "x", "tool_calls": [{"name": "f", "arguments": "{}"}]}]
    assert normalize_messages(messages)[0]["tool_calls"] == [{"name": "f", "arguments": {}}]
    wrapped = [{"type": "function", "function": {"name": "f"}}]
    assert normalize_tools([{"name": "f", "description": None}]) == wrapped
    assert normalize_tools([{"type": "function", "name": "f"}]) == wrapped
    assert normalize_tools(wrapped) == wrapped
    assert normalize_tools(None) == []


def test_the_input_is_left_as_it_is() -> None:
    for case in CASES:
        before = copy.deepcopy((case.messages, case.tools))
        normalize_messages(case.messages), normalize_tools(case.tools)
        assert (case.messages, case.tools) == before


def test_values_become_plain_json() -> None:
    class Color(enum.StrEnum):
        RED = "red"

    message = normalize_messages([{"role": "user", "content": "a", "color": Color.RED, "pair": (1, 2)}])[0]
    assert type(message["color"]) is str
    assert message["pair"] == [1, 2]
    assert normalize_messages([{"role": "assistant", "thinking": "hm"}])[0]["reasoning_content"] == "hm"
