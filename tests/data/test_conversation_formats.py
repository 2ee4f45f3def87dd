"""What records say, and the one line about each that says something else."""

from typing import Any

import pytest

from codemill.data.conversation_formats import (
    Continuation,
    Conversation,
    NothingToLearn,
    parse_domain,
    parse_example,
    parse_pair,
    parse_prompt,
)
from codemill.errors import UsageError
from data.conversations import CHAT, READ, TOOLS, call, result, says, user

SYSTEM = {"role": "system", "content": "S"}


def weights(record: dict[str, Any], **settings: bool) -> tuple[float, ...]:
    example = parse_example(record, **settings)
    assert isinstance(example, Conversation)
    return example.weights


def test_qwen_conversations() -> None:
    assert weights({**CHAT, "format": "chatml"}) == (0, 1, 0, 1)
    assert weights({**CHAT, "only_last_turn_loss": True}) == (0, 0, 0, 1)
    assert weights(CHAT, only_last_turn_loss=True) == (0, 0, 0, 1)
    assert weights({**CHAT, "only_last_turn_loss": False}, only_last_turn_loss=True) == (0, 1, 0, 1)


def test_several_system_messages_and_none() -> None:
    assert weights({"messages": [SYSTEM, user("a"), says("b"), SYSTEM, user("c"), says("d")]}) == (0, 0, 1, 0, 0, 1)
    assert weights({"messages": [says("I begin.")]}) == (1,)


def test_calls_with_arguments_as_json_text_or_objects() -> None:
    example = parse_example(TOOLS)
    assert isinstance(example, Conversation)
    calls = [call["function"]["arguments"] for message in example.messages for call in message.get("tool_calls", ())]
    assert calls == [{"path": "a.py"}, {"path": "b.py"}, {"path": "c.py"}]
    assert example.tools == [READ]
    assert parse_example({**TOOLS, "tools": '[{"name": "read_file"}]'}).tools[0]["function"] == {"name": "read_file"}


def test_prompt_and_completion() -> None:
    assert parse_example({"prompt": "a", "completion": "b"}) == Continuation("a", "b")
    record = {"prompt": [user("a"), says("b"), user("c")], "completion": [says("d")]}
    assert weights(record) == (0, 0, 0, 1)
    assert parse_example({"prompt": "a", "completion": [says("b")]}) == parse_example(
        {"messages": [user("a"), says("b")]}
    )
    assert weights({"prompt": [user("a")], "completion": "b"}) == (0, 1)
    assert parse_example({"text": "a"}) == Continuation("", "a", is_text=True)


def test_pairs() -> None:
    pair = parse_pair({"prompt": "a", "chosen": "b", "rejected": "c"})
    assert (pair.chosen, pair.rejected) == (Continuation("a", "b"), Continuation("a", "c"))
    explicit = parse_pair({"prompt": [user("a")], "chosen": [says("b")], "rejected": [says("c")]})
    implicit = parse_pair({"chosen": [user("a"), says("b")], "rejected": [user("a"), says("c")]})
    assert explicit == implicit
    assert explicit.chosen.weights == (0, 1)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("The sky is blue.", "The sky is green."),
        ("Is it? Yes!", "Is it? Yes, it is"),
        ("ab", "ac"),
        ([user("q"), says("a"), user("b"), says("c")], [user("q"), says("a"), user("b"), says("d"), user("e")]),
    ],
)
def test_the_implicit_prompt_is_that_of_trl(chosen: Any, rejected: Any) -> None:
    trl = pytest.importorskip("trl.data_utils")
    ours, theirs = parse_pair({"chosen": chosen, "rejected": rejected}), trl.extract_prompt(locals())
    if isinstance(chosen, str):
        assert ours.chosen == Continuation(theirs["prompt"], theirs["chosen"])
        assert ours.rejected == Continuation(theirs["prompt"], theirs["rejected"])
    else:
        assert sum(weight == 0 for weight in ours.chosen.weights) == len(theirs["prompt"])


def test_prompts_are_what_stands_before_the_answer() -> None:
    assert parse_prompt({"prompt": "a", "completion": "b"}) == Continuation("a", "")
    assert [m["content"] for m in parse_prompt(CHAT).messages] == ["Add 1 and 2.", "3", "And 4?"]
    assert parse_domain({"domain": "web"}) == "web"
    assert parse_domain({}) == ""


FAULTS = [
    ({}, "keys none: a record is"),
    ({"question": "a"}, "keys 'question': a record is"),
    ({"messages": []}, "the conversation is empty"),
    ({"messages": "hello"}, "expected a list of messages"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "message 0: unknown role 'robot'"),
    ({"messages": [{"role": "user", "text": "a"}, says("b")]}, "message 0: the user's message has no content"),
    ({"messages": [{**user("a"), "tool_calls": [call("f", {})]}, says("b")]}, "message 0: only the assistant calls"),
    ({"messages": [user("a"), {"role": "assistant", "content": 3}]}, "message 1: content must be text"),
    ({"messages": [user("a"), result("b"), says("c")]}, "message 1: a tool result without a call before it"),
    (
        {"messages": [user("a"), says("", call("f", {}, "1")), result("b", "2"), says("c")]},
        "message 2: a tool result for the call '2', which was not made",
    ),
    (
        {"messages": [says("", call("f", {}, "1")), result("b", "1"), result("c", "1")]},
        "message 2: a tool result without a call",
    ),
    ({"messages": [says("", call("f", "{"))]}, "message 0, tool call 0: the arguments are not valid JSON"),
    ({**CHAT, "tools": "{"}, "tools: not valid JSON"),
    ({**CHAT, "tools": [{}]}, "tool 0: expected a function with a name"),
    ({**CHAT, "format": "alpaca"}, "format 'alpaca': only 'chatml' is known"),
    ({**CHAT, "only_last_turn_loss": 1}, "only_last_turn_loss must be true or false"),
    ({"messages": [{**user("a"), "weight": 1}, says("b")]}, "message 0: only the assistant's messages can be learned"),
    ({"messages": [user("a"), says("b", weight=-1)]}, "message 1: a weight is a number that is not negative"),
    ({"messages": [user("a"), says("b", weight="1")]}, "message 1: a weight is a number"),
    ({"prompt": 3, "completion": "b"}, "prompt must be text or a list of messages, found int"),
    ({"prompt": "a", "completion": None}, "completion must be text or a list of messages, found NoneType"),
    ({"text": 3}, "text must be text, found int"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a preference pair is for DPO"),
]


@pytest.mark.parametrize(("record", "fault"), FAULTS)
def test_a_fault_is_named(record: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_example(record)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, NothingToLearn)


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"chosen": "a"}, "no key 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"chosen": "a", "rejected": "b"}, "begin differently: give the prompt"),
        ({"chosen": "a", "rejected": [says("b")]}, "must both be texts or both be lists"),
        ({"prompt": "a", "chosen": "b", "rejected": [says("c")]}, "must both be texts or both be lists"),
    ],
)
def test_a_fault_of_a_pair_is_named(record: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        parse_pair(record)


@pytest.mark.parametrize("record", [{"messages": [says("a")]}, {"prompt": []}, {"text": "a"}])
def test_without_a_prompt_there_is_none(record: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"nothing to answer|conversation is empty"):
        parse_prompt(record)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [user("a")]},
        {"messages": [user("a"), says("b", weight=0)]},
        {"messages": [user("a"), says("b", train=False)]},
        {"messages": [user("a"), says("b", training=False)]},
        {"messages": [user("a"), says("b", loss=0)]},
        {"messages": [user("a"), says(" ")]},
        {"prompt": [user("a"), says("b")], "completion": [user("c")]},
        {"prompt": "a", "completion": ""},
        {"text": "\n"},
    ],
)
def test_nothing_to_learn(record: dict[str, Any]) -> None:
    with pytest.raises(NothingToLearn):
        parse_example(record)


def test_thoughts_and_calls_are_something_to_learn() -> None:
    assert weights({"messages": [user("a"), says("", reasoning_content="hm")]}) == (0, 1)
    assert weights({"messages": [user("a"), says(None, call("f", "{}"))]}) == (0, 1)
