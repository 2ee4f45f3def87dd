"""Tools and texts for the tool-call parser's tests, and the check that streaming equals parsing the whole."""

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from codemill.chat import ArgumentsDelta, CallEnd, CallStart, ContentDelta, ParsedMessage, ParseProblem, ToolCallParser

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "write_file",
            "parameters": {
                "type": "object",
                "properties": {
                    "path": {"type": "string"},
                    "content": {"type": "string"},
                    "mode": {"type": "integer"},
                    "command": {"type": "string"},
                    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "options": {"$ref": "#/$defs/Options"},
                },
                "$defs": {"Options": {"type": "object"}},
            },
        },
    },
    {"name": "ls", "description": "bare, and without parameters"},
]


def call(name: str = "write_file", /, **values: str) -> str:
    """A well-formed call; each value stands between one line break and another."""
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def hermes(name: str, arguments: Any) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


def summary(message: ParsedMessage) -> tuple[Any, ...]:
    """The message without the random ids."""
    calls = [(item.name, item.arguments) for item in message.tool_calls]
    return message.content, calls, [(error.message, error.raw, error.index) for error in message.errors]


def stream(text: str, cuts: Iterable[int], tools: list[dict[str, Any]] | None) -> ParsedMessage:
    """Feed `text` cut at these places, check every promise about the events, return the message."""
    parser, events = ToolCallParser(tools), []
    edges = [0, *sorted(cuts), len(text)]
    for start, end in pairwise(edges):
        events += parser.feed(text[start:end])
    message = parser.finish()
    check_events([*events, *message], message)
    return message


def check_events(events: list[Any], message: ParsedMessage) -> None:
    content = "".join(event.text for event in events if isinstance(event, ContentDelta))
    assert content == message.content
    assert [event for event in events if isinstance(event, ParseProblem)] == list(message.errors)
    starts = [event for event in events if isinstance(event, CallStart)]
    ends = [event for event in events if isinstance(event, CallEnd)]
    assert [(event.index, event.id, event.name) for event in starts] == [
        (i, item.id, item.name) for i, item in enumerate(message.tool_calls)
    ]
    assert [event.call for event in ends] == list(message.tool_calls)
    for i, item in enumerate(message.tool_calls):
        mine = [n for n, event in enumerate(events) if getattr(event, "index", None) == i]
        assert isinstance(events[mine[0]], CallStart)
        assert isinstance(events[mine[-1]], CallEnd)
        deltas = [events[n].text for n in mine if isinstance(events[n], ArgumentsDelta)]
        assert json.loads("".join(deltas)) == item.arguments
        assert all(delta for delta in deltas)
