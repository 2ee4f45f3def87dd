"""For any text and any way to cut it, streaming gives what parsing the whole gives."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from chat.tool_texts import TOOLS, call, check_events, hermes, stream, summary
from codemill.chat import ToolCallParser

PIECES = [
    *("<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>"),
    *(
        "write_file>",
        "ls>\n",
        "path>\n",
        "content>",
        "mode>",
        "=create",
        "command",
        ">",
        "<",
        "\n",
        "\r\n",
        "  ",
        '"',
        "\\",
    ),
    *(
        "value",
        "12",
        "{'a': 1}",
        '{"name": "ls"',
        ', "arguments": {"path": "',
        '"}}',
        "null",
        "\U0001f600",
        "é",
        "<tool",
        "</",
    ),
    *("<function=ls>\n", "\n</parameter>\n", "<parameter=path>\n", "\n</function>\n</tool_call>", "<tool_call>\n"),
    call(path="a", content="b"),
    call("ls"),
    hermes("ls", {"path": "x"}),
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14).map("".join)
VALUES = st.lists(st.sampled_from(["<", ">", "\n", "\r\n", "x = 1", "'<a>'", "</b>", '"', "é", " ", "{}"]), max_size=8)


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.data(), st.sampled_from([TOOLS, None]))
def test_streaming_equals_the_whole(text: str, data: st.DataObject, tools) -> None:
    whole = ToolCallParser(tools).parse(text)
    check_events(list(whole), whole)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    assert summary(stream(text, cuts, tools)) == summary(whole)
    assert summary(stream(text, range(len(text)), tools)) == summary(whole)


@settings(max_examples=150, deadline=None)
@given(VALUES.map("".join), VALUES.map("".join), st.text(alphabet="ab \n", max_size=5), st.data())
def test_calls_survive_the_journey(path: str, content: str, around: str, data: st.DataObject) -> None:
    text = around + call(path=path, content=content) + around + hermes("ls", {"path": content}) + around
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    message = stream(text, cuts, TOOLS)
    assert [item.arguments for item in message.tool_calls] == [{"path": path, "content": content}, {"path": content}]
    assert re.sub(r"\s", "", message.content) == re.sub(r"\s", "", around * 3)
    assert not message.errors
