"""The hazards of reading tool calls, each of them reported by users of some implementation."""

import json

import pytest

from chat.tool_texts import TOOLS, call, hermes, stream, summary
from codemill.chat import ArgumentsDelta, ParsedMessage, Tokenizer, ToolCall, ToolCallParser, repeated_calls
from codemill.errors import UsageError


def parse(text: str, tools=TOOLS) -> ParsedMessage:
    """Parse, after checking that every cut of the text in two, and every single character, gives the same."""
    message = ToolCallParser(tools).parse(text)
    for cut in range(len(text) + 1):
        assert summary(stream(text, [cut], tools)) == summary(message)
    assert summary(stream(text, range(len(text)), tools)) == summary(message)
    return message


def arguments(text: str, tools=TOOLS) -> dict:
    message = parse(text, tools)
    assert [message.content, message.errors] == ["", ()]
    (only,) = message.tool_calls
    return only.arguments


def test_1_the_opening_tag_is_missing() -> None:
    text = call("ls", path="x").removeprefix("<tool_call>\n")
    assert arguments(text) == {"path": "x"}
    assert arguments(text.removesuffix("\n</tool_call>")) == {"path": "x"}
    message = parse("Listing.\n" + text + "\nThat is all.")
    assert message.content == "Listing.\nThat is all."
    assert message.tool_calls[0].arguments == {"path": "x"}


@pytest.mark.parametrize("tools", [TOOLS, None])
def test_2_the_closing_tag_of_a_parameter_is_missing(tools) -> None:
    both = call(path="a.py", content="x = 1")
    expected = {"path": "a.py", "content": "x = 1"}
    assert arguments(both.replace("\n</parameter>", "", 1), tools) == expected
    assert arguments(both.replace("\n</parameter>", ""), tools) == expected
    assert arguments(both.replace("\n</parameter>\n</function>", ""), tools) == expected
    assert arguments("<function=write_file><parameter=path>a.py<parameter=content>x = 1</function>", tools) == expected


def test_2_all_closing_tags_are_missing() -> None:
    unclosed = "<tool_call>\n<function=ls>\n<parameter=path>\n{}\n"
    for tools in (TOOLS, None):
        message = parse(unclosed.format("a") + unclosed.format("b") + call("ls", path="c"), tools)
        assert [item.arguments for item in message.tool_calls] == [{"path": "a"}, {"path": "b"}, {"path": "c"}]
        assert [error.index for error in message.errors] == [0, 1]
    bare = unclosed.removeprefix("<tool_call>\n")
    message = parse(bare.format("a") + bare.format("b") + "</function>")
    assert [item.arguments for item in message.tool_calls] == [{"path": "a"}, {"path": "b"}]


def test_2_a_call_that_lacks_a_required_parameter_is_not_over() -> None:
    parameters = {"properties": {"content": {}, "path": {}}, "required": ["content", "path"]}
    tools = [*TOOLS, {"name": "save", "parameters": parameters}]
    inner = "<tool_call>\n<function=ls>\n</function>\n</tool_call>"
    (only,) = parse(f"<tool_call>\n<function=save>\n<parameter=content>\n{inner}", tools).tool_calls
    assert only.arguments == {"content": inner}


@pytest.mark.parametrize(
    "closing", ["</tool_call>", "</function>", "</parameter>\n</function>", "</parameter>\n</tool_call>"]
)
@pytest.mark.parametrize("after", ["", "\n" + call("ls", path="b")])
def test_2_some_closing_tags_are_missing_before_text(closing: str, after: str) -> None:
    message = parse(f"<tool_call>\n<function=ls>\n<parameter=path>\na\n{closing}\nLooking.{after}")
    assert [item.arguments["path"] for item in message.tool_calls] == (["a", "b"] if after else ["a"])
    assert message.content.strip() == "Looking."
    assert message.errors[0].index == 0


@pytest.mark.parametrize("tools", [TOOLS, None])
def test_3_malformed_name_and_value(tools) -> None:
    text = "<tool_call>\n<function=write_file>\n<parameter=command=create</parameter>\n"
    rest = "<parameter=path>\na\n</parameter>\n</function>\n</tool_call>"
    assert arguments(text + rest, tools) == {"command": "create", "path": "a"}
    assert arguments(text + rest.replace("path>", "path=b</parameter>\n<parameter=content>"), tools) == {
        "command": "create",
        "path": "b",
        "content": "a",
    }
    assert arguments(call(path="a").replace("=path>", "=path"), tools) == {"path": "a"}
    assert arguments(call(path="a").replace("=path>", '="path">'), tools) == {"path": "a"}
    assert arguments(call(path="a").replace("=path>\n", "=path=b>\n"), tools) == {"path": "b\na"}


LITERALS = [
    'a = "</parameter>"',
    'a = "<tool_call>"\nb = "</tool_call>"',
    "</parameter>",
    "x\n</parameter>\ny",
    "x\n</function>\ny\n</tool_call>\nz",
    "</parameter>\n</function>\nx",
    'X = """\n</parameter>\n</function>\n</tool_call>\n"""\n',
    "</parameter>\n</function>\n</tool_call>\nx",
    'text = "<function=f>\\n<parameter=mode>\\n1"',
    'END = "</parameter></function></tool_call>"',
    "END = '</parameter>\\n</function>\\n</tool_call>'",
    "if text.startswith('<function='):\n    pass",
    'f"<parameter={name}>\\n{value}\\n</parameter>"',
    "<parameter=path>\nseen already\n</parameter>\nrest",
    "use <parameter=mode> here",
    "<tool_call>",
    "<tool_call>\n<function=ls>\n<parameter=path>\nx\n</parameter>\n</function>\n</tool_call>",
    f"TEXT = '''\n{call(path='a', content='b')}\n{call('ls')}\n'''\n",
    f"TEXT = '''\n{call(path='a', content=call('ls', path='x') + 'more')}\n'''\n",
    f"{hermes('ls', {'path': 'x'})}\nrest",
    "<function=ls>\n<parameter=path>\nx\n</parameter>\n</function>\nrest",
    "<function=ls>\n</function>",
    "<tool_call>\n<function=unknown>\n<parameter=path>\nnever closed",
    "a < b and c </ d <",
    "<|im_end|><tool_response></tool_response>",
]


@pytest.mark.parametrize("value", LITERALS)
@pytest.mark.parametrize("bare", [False, True])
def test_4_tags_inside_a_value_are_text(value: str, bare: bool) -> None:
    text = call(path="p", content=value)
    assert arguments(text.removeprefix("<tool_call>\n") if bare else text) == {"path": "p", "content": value}


@pytest.mark.parametrize("value", [value for value in LITERALS if "never closed" not in value])
@pytest.mark.parametrize("after", ["That is all.", "`a` is written.", "Now </parameter> ends it."])
def test_4_also_before_text(value: str, after: str) -> None:
    message = parse(call(path="p", content=value) + "\n" + after)
    assert [item.arguments for item in message.tool_calls] == [{"path": "p", "content": value}]
    assert message.content == after
    assert not message.errors


@pytest.mark.parametrize("value", [value for value in LITERALS if "never closed" not in value])
def test_4_also_before_another_call(value: str) -> None:
    message = parse(call(path="p", content=value) + "\n" + call("ls", path=value))
    assert [item.arguments for item in message.tool_calls] == [{"path": "p", "content": value}, {"path": value}]
    assert message.content == ""
    assert not message.errors


def test_6_several_calls() -> None:
    message = parse("Three.\n\n" + call("ls", path="a") + "\n" + call("ls", path="b") + call("write_file", path="c"))
    assert [item.arguments["path"] for item in message.tool_calls] == ["a", "b", "c"]
    assert len({item.id for item in message.tool_calls}) == 3
    assert all(item.id.startswith("call_") for item in message.tool_calls)
    assert message.finish_reason == "tool_calls"
    assert message.content == "Three."
    assert parse("None.").finish_reason == "stop"


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("before\n\n" + call("ls") + "\n\nafter", "before\n\nafter"),
        (call("ls") + "\nafter\n", "after\n"),
        ("\n\n" + call("ls") + "\n", ""),
        ("a" + call("ls") + "b", "ab"),
        ("a\n" + call("ls") + "\n" + call("ls") + "\n", "a"),
        ("  plain text\n\n", "  plain text\n\n"),
        *[(text, text) for text in ("use <tool_call> and </tool_call>", "`<function=x>` 1 < 2 <", "a </function>")],
        *[(text, text) for text in ("`<tool_call><function=ls></function></tool_call>`", "`<function=ls></function>`")],
        *[
            (text, text)
            for text in ("<tool_call> opens it,\n</tool_call> ends it.", "<tool_call>x</tool_call> is wrong")
        ],
        ("\n \n", "\n \n"),
        ("", ""),
    ],
)
def test_7_text_around_calls_is_content(text: str, content: str) -> None:
    message = parse(text)
    assert message.content == content
    assert not message.errors


def test_8_an_unknown_function_is_returned_and_reported() -> None:
    for text in (call("remove", path="x"), hermes("remove", {"path": "x"})):
        message = parse(text)
        assert message.tool_calls[0].arguments == {"path": "x"}
        assert message.errors[0].index == 0
        assert "remove" in message.errors[0].message
        assert not parse(text, tools=None).errors


@pytest.mark.parametrize(
    "inner",
    ["", "ls()", "<parameter=path>\nx\n</parameter>", "<function=>\n</function>", "<function=a<b>c</function>", "< x"],
)
def test_8_an_invalid_call_is_reported_with_its_text(inner: str) -> None:
    message = parse(f"Hm.\n<tool_call>\n{inner}\n</tool_call>\nSo.")
    assert message.content == "Hm.\nSo."
    assert not message.tool_calls
    assert inner in message.errors[0].raw


@pytest.mark.parametrize("inner", ["", "ls()", "name: ls"])
def test_8_also_on_one_line(inner: str) -> None:
    message = parse(f"Hm.\n<tool_call>{inner}</tool_call>\nSo.")
    assert message.content == "Hm.\nSo."
    assert message.errors[0].raw == inner


def test_8_text_between_parameters_is_reported() -> None:
    message = parse(call(path="a", content="b").replace("<parameter=content", "and <now>\n<parameter=content"))
    assert message.tool_calls[0].arguments["path"].startswith("a")
    message = parse("<function=ls>\n<parameter=>\n</parameter>\nrest")
    assert message.errors[1].raw == "<parameter=>\n\nrest"
    message = parse("<tool_call><function=ls>\nand now\n<tool_call> again")
    assert message.content == "<tool_call> again"
    message = parse("<tool_call>\n<function=ls>\n{'path': 'a'}\n</function>\n</tool_call>")
    assert message.tool_calls[0].arguments == {}
    assert message.errors[0].raw == "{'path': 'a'}"


def test_8_a_call_cut_anywhere_is_reported_or_whole() -> None:
    text = "Now:\n" + call(path="a.py", content="x = 1\ny = 2")
    complete = text.index("</function>") + len("</function>")
    for end in range(text.index("<tool_call>") + 5, len(text) + 1):
        message = ToolCallParser(TOOLS).parse(text[:end])
        assert message.content == "Now:"
        assert bool(message.errors) == (end < complete)
        got = message.tool_calls[0].arguments if message.tool_calls else {}
        assert "a.py".startswith(got.get("path", ""))
        assert "x = 1\ny = 2".startswith(got.get("content", ""))


def test_8_a_json_call_cut_anywhere_is_reported_or_whole() -> None:
    text = hermes("ls", {"path": "a", "deep": {"b": [1, "}"]}})
    complete = text.index("\n</tool_call>")
    for end in range(5, len(text) + 1):
        message = ToolCallParser(TOOLS).parse(text[:end])
        assert message.content == ""
        assert bool(message.errors) == (end < complete)


BIG = "".join(f"def f{i}(x):\n    return x < {i} or '</a>'\n\n" for i in range(2500))
VALUES = ["\n\nx\n\n", "a\r\nb", "\r\n", "\U0001f600 e\u0301 \u200d", "", " ", "\t\n", '"\\ \x00 \u2028', "null", "12"]


@pytest.mark.parametrize("value", VALUES)
def test_9_values_keep_every_character(value: str) -> None:
    assert arguments(call(path="p", content=value)) == {"path": "p", "content": value}
    crlf = call(path="p", content="@").replace("\n", "\r\n").replace("@", value)
    assert arguments(crlf) == {"path": "p", "content": value}


@pytest.mark.parametrize("size", [1, 4, 1000, 10**9])
@pytest.mark.parametrize(
    "text",
    [
        call(path="p", content=BIG),
        hermes("ls", {"path": BIG}),
        call(path="p", content="\n" * 100_000),
        call(path="p", content="</parameter>" + " " * 100_000),
        call(path="p", content="</parameter>\n" * 8_000 + "x"),
        call(path="p", content="<tool_call>\n<function=ls>\n" * 4_000),
        "<tool_call>\n<function=ls>\n<parameter=path>\n" * 2_000 + "</tool_call>",
        (call(path="p", content="x") + " and ") * 1_000,
        "\n" * 50_000 + "<" * 50_000,
        "<tool_call>\nnonsense " + BIG,
        '<tool_call>\n{"name": "ls", "arguments": {"path": "' + BIG,
    ],
    ids=[
        "code",
        "json",
        "lines",
        "spaces",
        "closers",
        "openers",
        "unclosed",
        "text",
        "content",
        "invalid",
        "unclosed string",
    ],
)
def test_9_time_grows_with_the_length_only(text: str, size: int, work_budget) -> None:
    parser = ToolCallParser(TOOLS)
    with work_budget(seconds=8.0):
        for i in range(0, len(text), size):
            parser.feed(text[i : i + size])
        message = parser.finish()
    whole = ToolCallParser(TOOLS).parse(text)
    assert summary(message) == summary(whole)


def test_10_string_arguments_stream_as_they_come() -> None:
    parser, seen = ToolCallParser(TOOLS), []
    for character in call(path="a.py", content="one two three"):
        seen += [event.text for event in parser.feed(character) if isinstance(event, ArgumentsDelta)]
    assert len(seen) > 10
    seen += [event.text for event in parser.finish() if isinstance(event, ArgumentsDelta)]
    assert json.loads("".join(seen)) == {"path": "a.py", "content": "one two three"}


def test_10_typed_arguments() -> None:
    text = call(mode="420", options="{'a': True}", note="null", content="null", extra="7")
    expected = {"mode": 420, "options": {"a": True}, "note": None, "content": "null", "extra": "7"}
    assert arguments(text) == expected
    assert arguments(call("ls")) == {}


def test_11_repeated_calls() -> None:
    once, other = ToolCall("f", {"a": 1}), ToolCall("f", {"a": 2})
    assert [repeated_calls(calls) for calls in ([], [once], [other, once], [once, other, other, other])] == [0, 1, 1, 3]
    assert repeated_calls([once, ToolCall("f", {"a": 1}), ToolCall("f", {"a": 1})]) == 3


def test_hermes_calls() -> None:
    message = parse("Hm.\n" + hermes("ls", {"path": '</tool_call> " {', "n": [1, {}]}) + "\n" + hermes("ls", {}))
    assert [item.arguments for item in message.tool_calls] == [{"path": '</tool_call> " {', "n": [1, {}]}, {}]
    assert message.content == "Hm."
    assert not message.errors


@pytest.mark.parametrize(
    "inner",
    [
        '{"name": "ls", "arguments": "{\\"path\\": 1}"}',
        '{"name": "ls", "parameters": {"path": 1}}',
        "{'name': 'ls', 'arguments': {'path': 1}}",
        '{"arguments": {"path": 1}, "name": "ls"}',
    ],
)
def test_hermes_variants(inner: str) -> None:
    message = parse(f"<tool_call>{inner}</tool_call>")
    assert [(item.name, item.arguments) for item in message.tool_calls] == [("ls", {"path": 1})]
    assert not message.errors


def test_hermes_with_brackets_wrong() -> None:
    message = parse('<tool_call>\n{"name": "ls", "arguments": {"path": "a"}\n</tool_call>\n' + call("ls", path="b"))
    assert [item.arguments for item in message.tool_calls] == [{"path": "a"}, {"path": "b"}]
    assert "lacked '}'" in message.errors[0].message
    message = parse('<tool_call>\n{"name": "ls", "arguments": {}}}}\n</tool_call>\nafter')
    assert message.content == "after"
    assert message.tool_calls[0].arguments == {}


@pytest.mark.parametrize(
    "inner",
    ['{"arguments": {}}', '{"name": 3}', '{"name": "f", "arguments": [1]}', '{"name": "f", "arguments": "x"}', "{x}"],
)
def test_invalid_hermes_calls_are_reported(inner: str) -> None:
    message = parse(f"a\n<tool_call>\n{inner}\n</tool_call>\nb " + call("ls"))
    assert message.content == "a\nb"
    assert message.errors[0].raw.strip() == inner
    assert len(message.tool_calls) == 1


def test_an_unclosed_json_string_does_not_swallow_the_next_call() -> None:
    message = parse(
        '<tool_call>\n{"name": "ls", "arguments": {"path": "a}}\n</tool_call>\nthen ' + call("ls", path="b")
    )
    assert [item.arguments for item in message.tool_calls] == [{"path": "b"}]
    assert message.content == "then"
    assert len(message.errors) == 1


def test_the_parser_is_ready_for_another_message() -> None:
    parser = ToolCallParser(TOOLS)
    for _ in range(2):
        parser.feed("x " + call("ls"))
        message = parser.finish()
        assert (message.content, len(message.tool_calls)) == ("x", 1)
    assert len(parser.parse(call("ls")).events) == 3


def test_malformed_tools_are_refused() -> None:
    with pytest.raises(UsageError, match="tool 0"):
        ToolCallParser([{"type": "function"}])


def test_what_we_render_we_read(small: Tokenizer) -> None:
    schema = {key: {"type": key} for key in ("string", "integer", "number", "boolean", "object", "array", "null")}
    tools = [{"name": "f", "parameters": {"type": "object", "properties": schema, "required": ["string"]}}]
    values = {"string": "\n a\n\n", "integer": -3, "number": 0.5, "boolean": True, "object": {"a": [None]}}
    calls = [ToolCall("f", {**values, "array": [1, "ü", {}], "null": None}), ToolCall("f", {"string": call("f")})]
    sent = [{"type": "function", "function": {"name": item.name, "arguments": item.arguments_json}} for item in calls]
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "Now.", "tool_calls": sent}]
    answer = small.render(messages, add_generation_prompt=False).partition("assistant")[2].removesuffix("<|im_end|>\n")
    message = parse(answer, tools)
    assert [item.arguments for item in message.tool_calls] == [item.arguments for item in calls]
    assert message.content.strip() == "Now."
    assert not message.errors
