"""Our own chat format, for checkpoints that bring no template: what Qwen3-Coder's template writes, byte for byte.

Without tools and calls this is plain ChatML. Source: the `chat_template` of Qwen3-Coder, revisions 2025-10 and 2026-08.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from codemill.chat.template import ControlMarks
from codemill.errors import UsageError

Message = Mapping[str, Any]
LATEST_REVISION = "2026-08"

DEFAULT_SYSTEM = "You are Qwen, a helpful AI assistant that can interact with a computer to solve tasks."
EXAMPLE_CALL = (
    "\n\n<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\n{second}\n</parameter>\n</function>\n</tool_call>\n\n"
)
REMINDER = (
    "<IMPORTANT>\nReminder:\n- Function calls MUST follow the specified format: {format}\n"
    "- Required parameters MUST be specified\n"
    "- You may provide optional reasoning for your function call in natural language BEFORE the function call, "
    "but NOT after\n"
    "- If there is no function call available, answer the question like normal with your current knowledge and do not "
    "tell the user about function calls\n</IMPORTANT>"
)
INTRODUCTION = "\n\n# Tools\n\nYou have access to the following {noun}s:\n\n<tools>"
INSTRUCTIONS = "\n\nIf you choose to call a {noun} ONLY reply in the following format with NO suffix:"
WORDING = {
    "2026-08": {
        "noun": "tool",
        "second": "value_2",
        "format": "the tool calling block MUST begin with an opening <tool_call> tag and end with a closing "
        "</tool_call> tag.",
    },
    "2025-10": {
        "noun": "function",
        "second": "This is the value for the second parameter\nthat can span\nmultiple lines",
        "format": "an inner <function=...></function> block must be nested within <tool_call></tool_call> XML tags",
    },
}


class Own(str):
    """Text that the format itself writes: the only text in which a control token is one."""


def render_coder(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = True,
    marks: ControlMarks | None = None,
    revision: str = LATEST_REVISION,
    **_variables: Any,
) -> str:
    """The conversation in Qwen3-Coder's format. Messages and tools are normalised ones; further variables are ignored.

    With `marks`, the format's own control tokens are marked. Raises UsageError for an unknown revision.
    """
    if not isinstance(revision, str) or revision not in WORDING:
        raise UsageError(f"revision: no chat format of {revision!r}; use one of {', '.join(WORDING)}")
    pieces = _conversation(messages, tools, add_generation_prompt, WORDING[revision])
    return "".join(marks.mark(piece) if marks and isinstance(piece, Own) else piece for piece in pieces)


def _conversation(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], add_generation_prompt: bool, words: dict[str, str]
) -> Iterator[str]:
    has_system = messages[0]["role"] == "system"
    if has_system or tools:
        yield Own("<|im_start|>system\n")
        yield messages[0]["content"] if has_system else DEFAULT_SYSTEM
        if tools:
            yield from _tools_block(tools, words)
        yield Own("<|im_end|>\n")
    turns = messages[1:] if has_system else messages
    # A conversation that starts with a tool result gets no opening user turn: so does the original.
    for previous, message, following in _with_neighbours(turns):
        yield from _turn(message, opens=previous not in (None, "tool"), closes=following != "tool")
    if add_generation_prompt:
        yield Own("<|im_start|>assistant\n")


def _with_neighbours(turns: Sequence[Message]) -> Iterator[tuple[str | None, Message, str | None]]:
    roles = [None, *(turn["role"] for turn in turns), None]
    for (before, _), turn, (_, after) in zip(pairwise(roles), turns, pairwise(roles[1:]), strict=False):
        yield before, turn, after


def _turn(message: Message, opens: bool, closes: bool) -> Iterator[str]:
    """One message; a run of tool results shares one user turn, which the first opens and the last closes."""
    if message["role"] == "tool":
        yield Own(("<|im_start|>user\n" if opens else "") + "<tool_response>\n")
        yield message["content"]
        yield Own("\n</tool_response>\n" + ("<|im_end|>\n" if closes else ""))
    elif message["role"] == "assistant" and message.get("tool_calls"):
        yield from _assistant_calls(message)
    else:
        yield Own(f"<|im_start|>{message['role']}\n")
        yield message["content"]
        yield Own("<|im_end|>\n")


def _assistant_calls(message: Message) -> Iterator[str]:
    yield Own("<|im_start|>assistant")
    if content := message["content"].strip():
        yield f"\n{content}\n"
    for call in message["tool_calls"]:
        function = call.get("function", call)
        yield Own("\n<tool_call>\n<function=")
        yield f"{function['name']}>\n"
        for name, value in function["arguments"].items():
            yield f"<parameter={name}>\n{_value(value)}\n</parameter>\n"
        yield Own("</function>\n</tool_call>")
    yield Own("<|im_end|>\n")


def _tools_block(tools: Sequence[Mapping[str, Any]], words: dict[str, str]) -> Iterator[str]:
    yield Own(INTRODUCTION.format(**words))
    for tool in tools:
        yield from _function(tool["function"])
    yield Own("\n</tools>" + (INSTRUCTIONS + EXAMPLE_CALL + REMINDER).format(**words))


def _function(function: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n<function>\n<name>{function['name']}</name>"
    if "description" in function:
        yield f"\n<description>{str(function['description']).strip()}</description>"
    yield "\n<parameters>"
    parameters = function.get("parameters")
    if isinstance(parameters, Mapping):
        properties = parameters.get("properties")
        for name, schema in properties.items() if isinstance(properties, Mapping) else ():
            yield from _parameter(name, schema)
        yield from _extra_keys(parameters, ("type", "properties"))
    yield "\n</parameters>"
    yield from _extra_keys(function, ("type", "name", "description", "parameters"))
    yield "\n</function>"


def _parameter(name: str, schema: Any) -> Iterator[str]:
    yield f"\n<parameter>\n<name>{name}</name>"
    if isinstance(schema, Mapping):
        if "type" in schema:
            yield f"\n<type>{schema['type']}</type>"
        if "description" in schema:
            yield f"\n<description>{str(schema['description']).strip()}</description>"
        yield from _extra_keys(schema, ("name", "type", "description"))
    yield "\n</parameter>"


def _extra_keys(mapping: Mapping[str, Any], handled: tuple[str, ...]) -> Iterator[str]:
    for key, value in mapping.items():
        if key not in handled:
            yield f"\n<{key}>{_value(value)}</{key}>"


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
