"""What a random model writes under the grammar of tool calls, our parser reads as calls that validate."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from codemill.chat import ParsedMessage, Tokenizer, ToolCallParser
from codemill.data.bpe import CONTROL_TOKENS
from codemill.engine.grammar import GrammarCompiler
from codemill.engine.structured_output import StructuredOutput, ToolCallStyle
from codemill.errors import UsageError
from engine.random_text import HINTS, RandomModel

VOCAB_SIZE = 320
QWEN_ROWS = 151_936
STYLES: tuple[ToolCallStyle, ...] = ("qwen3_coder", "hermes")
BEYOND_DOUBLES = re.compile(r"(?<=\d)[eE]\+?\d{3,}")  # JSON allows such numbers, and Python has none for them
CALL_HINTS = (*HINTS, "\n</parameter>\n", "\n</function>\n")


def _tool(name: str, properties: Mapping[str, Any] | None = None, *required: str, **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": dict(properties or {}), "required": list(required), **more}
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


STR, INT = {"type": "string"}, {"type": "integer"}
COLOR = {"$defs": {"Color": {"type": "string", "enum": ["red", "green"]}}}
TOOLS = [
    {"type": "function", "function": {"name": "no_parameters"}},
    _tool("nothing"),
    _tool("text", {"s": STR}, "s"),
    _tool("optional", {"s": STR, "i": INT, "b": {"type": "boolean"}}),
    _tool("mixed", {"path": STR, "n": INT, "all": {"type": "boolean"}}, "n", "path"),
    _tool("ns.read-file:v2", {"a.b": STR, "c-d": INT}, "a.b", "c-d"),
    _tool("größe", {"länge": INT, "日本": STR}, "länge"),
    _tool("json", {"o": {"type": "object"}, "l": {"type": "array", "items": STR}, "z": {"type": "null"}}, "o", "l"),
    _tool(
        "edits",
        {"edits": {"type": "array", "items": _tool("", {"old": STR}, "old")["function"]["parameters"]}},
        "edits",
    ),
    _tool("enums", {"e": {"type": "string", "enum": ["a", "b c", "ü\nx", 'q"']}, "k": {"const": "x"}}, "e", "k"),
    _tool("numbers", {"e": {"enum": [1, 2.5]}, "f": {"type": "integer", "enum": [3, 4]}}, "e", "f"),
    _tool(
        "mixed_enum",
        {"e": {"enum": ["a", 1, None, True]}, "n": {"type": ["string", "null"], "enum": ["a", None]}},
        "e",
        "n",
    ),
    _tool("nullable", {"s": {"type": ["string", "null"]}, "i": {"anyOf": [INT, {"type": "null"}]}}, "s", "i"),
    _tool("bounded", {"s": {"type": "string", "minLength": 2, "maxLength": 9}, "t": {**STR, "minLength": 1}}, "s", "t"),
    _tool("patterns", {"p": {**STR, "pattern": "^/[a-z/]+$"}, "q": {**STR, "pattern": "[0-9]"}}, "p", "q"),
    _tool("look_around", {"p": {**STR, "pattern": "^(?!x)"}, "e": {**STR, "pattern": "^(?:)"}}, "e"),
    _tool(
        "either",
        {"v": {"anyOf": [STR, {"type": "array", "items": STR}]}, "w": {"type": ["string", "integer"]}},
        "v",
        "w",
    ),
    _tool("bounded_either", {"v": {"anyOf": [{**INT, "minimum": 10}, {**STR, "minLength": 2}]}}, "v"),
    _tool("branches", {"v": {"oneOf": [{"const": "all"}, {**STR, "pattern": "^[1-9][0-9]*$"}]}}, "v"),
    _tool("untyped", {"v": {}, "w": {"description": "w"}, "x": True}, "v", "w", "x"),
    _tool(
        "reference",
        {"c": {"$ref": "#/$defs/Color"}, "l": {"type": "array", "items": {"$ref": "#/$defs/Color"}}},
        "c",
        "l",
        **COLOR,
    ),
    _tool("all_of", {"c": {"allOf": [{"$ref": "#/$defs/Color"}], "default": "red"}}, "c", **COLOR),
    _tool("undeclared", {"a": INT}, "a", "b"),
    _tool("undeclared_integer", {"a": INT}, "b", additionalProperties=INT),
    _tool("closed", {"a": INT, "b": False}, "a", additionalProperties=False),
    _tool("draft", {"a": INT}, "a", **{"$schema": "http://json-schema.org/draft-07/schema#"}),
    _tool("many", {f"p{i}": INT for i in range(70)}, "p69", "p3"),
    {"type": "function", "function": {"name": "loose", "parameters": {"properties": {"any": {"type": "any"}}}}},
]


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, VOCAB_SIZE)


def write(
    compiler: GrammarCompiler, tokenizer: Tokenizer, output: StructuredOutput, seed: int, vocab_size: int = VOCAB_SIZE
) -> str | None:
    """The text of a random model under the grammar; None if it did not end."""
    model = RandomModel(tokenizer, vocab_size, seed, hints=CALL_HINTS)
    ids = model.write(compiler.compile(output).start(), 1500)
    return None if ids is None else tokenizer.decode(ids)


def parse(text: str, tools: Sequence[Mapping[str, Any]]) -> ParsedMessage:
    """What our parser makes of the text, without problems, and with arguments that validate."""
    message = ToolCallParser(tools).parse(BEYOND_DOUBLES.sub("e9", text))
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    assert message.errors == (), text
    for call in message.tool_calls:
        schema = functions[call.name].get("parameters") or {"type": "object", "maxProperties": 0}
        jsonschema.validate(call.arguments, _plain(schema))
    return message


def _plain(schema: Any) -> Any:
    """Without the type that some clients invented."""
    return json.loads(json.dumps(schema).replace('"type": "any"', '"title": "any"'))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool["function"]["name"])
def test_calls_parse_back_and_validate(
    compiler: GrammarCompiler, tokenizer: Tokenizer, tool: dict[str, Any], style: ToolCallStyle
) -> None:
    name = tool["function"]["name"]
    texts = [write(compiler, tokenizer, StructuredOutput.for_tools(TOOLS, name, style), seed) for seed in range(6)]
    ended = [text for text in texts if text is not None]
    assert len(ended) >= 3
    for text in ended:
        message = parse(text, TOOLS)
        assert [call.name for call in message.tool_calls] == [name]
        assert message.content == ""


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("parallel", [True, False])
def test_the_number_of_calls_is_what_was_asked_for(
    compiler: GrammarCompiler, tokenizer: Tokenizer, choice: str, parallel: bool, style: ToolCallStyle
) -> None:
    tools = TOOLS[:8]
    output = StructuredOutput.for_tools(tools, choice, style, parallel)
    texts = [write(compiler, tokenizer, output, seed) for seed in range(60)]
    messages = [ToolCallParser(tools).parse(text) for text in texts if text is not None]
    counts = {len(message.tool_calls) for message in messages}
    assert len(messages) > 50
    assert (0 in counts) == (choice == "auto")
    assert (max(counts) > 1) == parallel or choice == "auto"
    assert max(counts) <= 1 or parallel
    assert all(message.content == "" for message in messages) == (choice == "required")


@pytest.mark.parametrize("style", STYLES)
def test_a_form_of_the_text_forbids_no_calls(
    compiler: GrammarCompiler, tokenizer: Tokenizer, style: ToolCallStyle
) -> None:
    schema = {"type": "object", "properties": {"n": INT}, "required": ["n"], "additionalProperties": False}
    output = StructuredOutput.for_tools(TOOLS[:4], style=style, answer=schema)
    texts = [write(compiler, tokenizer, output, seed) for seed in range(40)]
    messages = [parse(text, TOOLS[:4]) for text in texts if text is not None]
    assert {bool(message.tool_calls) for message in messages} == {True, False}
    for message in messages:
        if message.tool_calls:
            assert message.content == ""
        else:
            jsonschema.validate(json.loads(BEYOND_DOUBLES.sub("e9", message.content)), schema)


@pytest.mark.parametrize("style", STYLES)
def test_text_comes_before_calls_and_not_after(
    compiler: GrammarCompiler, tokenizer: Tokenizer, style: ToolCallStyle
) -> None:
    grammar = compiler.compile(StructuredOutput.for_tools(TOOLS[:3], style=style))
    marks = {"<tool_call>", "</tool_call>", "<think>", "</think>"}
    call = {
        "qwen3_coder": "<tool_call>\n<function=text>\n<parameter=s>\nif a < b:\n    x()\n</parameter>\n</function>\n"
        "</tool_call>",
        "hermes": '<tool_call>\n{"name": "text", "arguments": {"s": "if a < b:"}}\n</tool_call>',
    }[style]
    whole = f"<think>why</think>I will.\n\n{call}\n{call}"
    state = grammar.start()
    for token_id in _canonical(grammar.start(), tokenizer, whole, marks):
        state.accept(token_id)
    assert state.is_accepting
    assert state.num_valid(tokenizer.encode("x")) == 0
    assert state.num_valid(tokenizer.encode("\n" + call, allowed_special=marks)[:3]) == 3


def _canonical(state: Any, tokenizer: Tokenizer, text: str, marks: set[str]) -> list[int]:
    """The tokens of a text as the grammar wants them: the forced ones where it forces some."""
    rest, ids = text, []
    while rest:
        forced = state.forced_tokens()
        token_id = forced[0] if forced else tokenizer.encode(rest, allowed_special=marks)[0]
        if state.num_valid([token_id]) == 0:
            token_id = tokenizer.encode(rest[0])[0]
        state.accept(token_id)
        ids.append(token_id)
        piece = tokenizer.decode([token_id])
        assert rest.startswith(piece)
        rest = rest[len(piece) :]
    return ids


@pytest.mark.parametrize("tag", ["</parameter>", "<parameter=s>", "<function=text>", "<tool_call>"])
def test_tags_cannot_stand_in_text(compiler: GrammarCompiler, tokenizer: Tokenizer, tag: str) -> None:
    state = compiler.compile(StructuredOutput.for_tools(TOOLS, "text")).start()
    for token_id in _canonical(
        state.copy(), tokenizer, "<tool_call>\n<function=text>\n<parameter=s>\nx ", {"<tool_call>"}
    ):
        state.accept(token_id)
    single = [next(i for i in range(256) if tokenizer.token_bytes(i) == byte.encode()) for byte in tag]
    accepted = state.num_valid(single)
    if tag == "</parameter>":
        assert accepted == len(single)
        for token_id in single:
            state.accept(token_id)
        assert tokenizer.decode(state.forced_tokens()).startswith("\n</function>")
    else:
        assert accepted == tag.find("=") if "=" in tag else accepted == len(tag) - 1


def test_without_control_tokens_the_tags_are_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plain = _without_tool_tokens(tokenizer, tmp_path)
    assert "<tool_call>" not in plain.control_tokens
    compiler = GrammarCompiler(plain, VOCAB_SIZE)
    tools = TOOLS[:5]
    for style in STYLES:
        for choice in ("required", "text"):
            texts = [
                write(compiler, plain, StructuredOutput.for_tools(tools, choice, style), seed) for seed in range(8)
            ]
            assert all(parse(text, tools).tool_calls for text in texts if text is not None)
    state = compiler.compile(StructuredOutput.for_tools(tools)).start()
    call = "<tool_call>\n<function=text>\n<parameter=s>\nx\n</parameter>\n</function>\n</tool_call>"
    for token_id in _canonical(state.copy(), plain, f"I <tool_ will.\n\n{call}\n{call}", set()):
        state.accept(token_id)
    assert state.is_accepting


def _without_tool_tokens(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    tokenizer.save(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in CONTROL_TOKENS]
    path.write_text(json.dumps(content))
    return Tokenizer.load(folder)


def test_a_name_that_cannot_stand_in_a_tag_is_left_out_or_refused(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    tools = [_tool("a+b"), _tool("fine", {"x>y": STR, "s": INT}, "s")]
    with pytest.raises(UsageError, match=r"'a\+b' cannot stand in a tag"):
        compiler.compile(StructuredOutput.for_tools(tools, "a+b"))
    for seed in range(10):
        text = write(compiler, tokenizer, StructuredOutput.for_tools(tools, "required"), seed)
        assert text is None or {call.name for call in parse(text, tools).tool_calls} == {"fine"}
    text = write(compiler, tokenizer, StructuredOutput.for_tools(tools, "a+b", "hermes"), 0)
    assert text is not None
    assert parse(text, tools).tool_calls[0].name == "a+b"


def client_tools(shared_data: Path) -> list[list[dict[str, Any]]]:
    """The tools of each stored request of a client that has some."""
    bodies = [
        json.loads(path.read_text()).get("body") or {} for path in (shared_data.parent / "clients").glob("*.json")
    ]
    wrapped = [
        [tool if "function" in tool else {"function": tool} for tool in body.get("tools") or ()] for body in bodies
    ]
    return [tools for tools in wrapped if tools]


@pytest.mark.parametrize("style", STYLES)
def test_calls_of_the_clients_tools_validate(
    compiler: GrammarCompiler, tokenizer: Tokenizer, shared_data: Path, style: ToolCallStyle
) -> None:
    ended = total = 0
    for tools in client_tools(shared_data):
        for name in {tool["function"]["name"] for tool in tools}:
            text = write(compiler, tokenizer, StructuredOutput.for_tools(tools, name, style), 1)
            total += 1
            if text is not None:
                ended += 1
                assert [call.name for call in parse(text, tools).tool_calls] == [name]
    assert total > 60
    assert ended > 0.95 * total


@pytest.mark.parametrize("style", STYLES)
def test_calls_validate_with_qwens_vocabulary(shared_data: Path, style: ToolCallStyle) -> None:
    qwen = Tokenizer.load(shared_data / "tokenizer_qwen")
    compiler = GrammarCompiler(qwen, QWEN_ROWS)
    tools = max(client_tools(shared_data), key=len)
    messages = []
    for seed in range(8):
        text = write(compiler, qwen, StructuredOutput.for_tools(tools, "required", style), seed, QWEN_ROWS)
        messages += [] if text is None else [parse(text, tools)]
    assert sum(len(message.tool_calls) for message in messages) >= 8
