"""Records of other trainers say the same as ours."""

from typing import Any

import pytest

from codemill.data.conversation_formats import ExamplePair, parse_example, parse_pair, parse_prompt
from codemill.errors import UsageError
from data.conversations import CHAT, READ, call, result, says, user

SYSTEM = {"role": "system", "content": "S"}
ASKED = {"messages": [user("a"), says("b")]}


def said(speaker: str, text: str, **more: Any) -> dict[str, Any]:
    return {"from": speaker, "value": text, **more}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"conversations": [said("human", "a"), said("gpt", "b")]}, ASKED),
        ({"conversations": [user("a"), says("b")]}, ASKED),
        ({"messages": [said("human", "a"), said("gpt", "b")]}, ASKED),
        (
            {"conversations": [said("human", "a"), said("gpt", "b", weight=0), said("human", "c"), said("model", "d")]},
            {"messages": [user("a"), says("b", weight=0), user("c"), says("d")]},
        ),
        (
            {"conversations": [said("system", "S"), said("human", "a"), said("gpt", "b")], "system": "S"},
            {"messages": [SYSTEM, user("a"), says("b")]},
        ),
        ({"system": "S", **ASKED}, {"messages": [SYSTEM, user("a"), says("b")]}),
        ({"instruction": "a", "input": "", "output": "b"}, ASKED),
        ({"instruction": "a", "input": "i", "output": "b"}, {"messages": [user("a\ni"), says("b")]}),
        (
            {"instruction": "a", "output": "b", "system": "S", "history": [["c", "d"]]},
            {"messages": [SYSTEM, user("c"), says("d"), user("a"), says("b")]},
        ),
        (
            {
                "conversations": [
                    said("human", "a"),
                    said("function_call", '{"name": "f", "arguments": {"x": 1}}'),
                    said("observation", "1"),
                    said("gpt", "b"),
                ],
                "tools": '[{"name": "f"}]',
            },
            {"messages": [user("a"), says("", call("f", {"x": 1})), result("1"), says("b")], "tools": [{"name": "f"}]},
        ),
        (
            {
                "messages": [
                    user("a"),
                    {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
                    {"role": "function", "name": "f", "content": "1"},
                    says("b"),
                ],
                "functions": [READ["function"]],
            },
            {"messages": [user("a"), says("", call("f", {})), result("1"), says("b")], "tools": [READ]},
        ),
    ],
)
def test_what_is_learned_is_the_same(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    found, expected = parse_example(theirs), parse_example(ours)
    assert spoken(found) == spoken(expected)
    assert (found.tools, found.weights) == (expected.tools, expected.weights)


def spoken(example: Any) -> list[tuple[str, str, list[Any]]]:
    """What templates read of the messages."""
    calls = [[c.get("function", c) for c in message.get("tool_calls") or ()] for message in example.messages]
    called = [[(function["name"], function["arguments"]) for function in each] for each in calls]
    return [(m["role"], m["content"], names) for m, names in zip(example.messages, called, strict=True)]


PAIR = parse_pair({"prompt": [user("a")], "chosen": [says("b")], "rejected": [says("c")]})


@pytest.mark.parametrize(
    "record",
    [
        {
            "prompt": "a",
            "chosen": [user("a"), says("b")],
            "rejected": [user("a"), says("c")],
        },  # ultrafeedback_binarized
        {"prompt": [user("a")], "chosen": [user("a"), says("b")], "rejected": [user("a"), says("c")]},
        {"prompt": "a", "chosen": [says("b")], "rejected": [says("c")]},
        {"prompt": [user("a")], "chosen": "b", "rejected": "c"},
        {"prompt": [user("a")], "chosen": says("b"), "rejected": says("c")},
        {"conversations": [said("human", "a")], "chosen": said("gpt", "b"), "rejected": said("gpt", "c")},
        {"instruction": "a", "chosen": "b", "rejected": "c"},
    ],
)
def test_pairs_are_the_same(record: dict[str, Any]) -> None:
    found = parse_pair(record)
    assert isinstance(found, ExamplePair)
    assert spoken(found.chosen) == spoken(PAIR.chosen)
    assert spoken(found.rejected) == spoken(PAIR.rejected)
    assert found.chosen.weights == found.rejected.weights == (0, 1)


def test_prompts_are_the_same() -> None:
    expected = parse_prompt({"prompt": [user("a")]})
    for record in ({"conversations": [said("human", "a"), said("gpt", "b")]}, {"instruction": "a"}):
        assert spoken(parse_prompt(record)) == spoken(expected)
    assert parse_example(CHAT) == parse_example({**CHAT, "conversations": [said("human", "not read")]})


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"conversations": "a"}, "expected a list of messages, found str"),
        ({"conversations": [said("robot", "a")]}, "message 0: unknown role 'robot'"),
        ({"conversations": [said("human", "a"), said("function_call", "{")]}, "message 1: the function call is not"),
        ({"conversations": [said("human", "a"), said("function_call", "3")]}, "message 1, tool call 0: expected"),
        ({"instruction": 3, "output": "b"}, "instruction must be text, found int"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "history must be a list of pairs"),
    ],
)
def test_a_fault_is_named(record: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        parse_example(record)
