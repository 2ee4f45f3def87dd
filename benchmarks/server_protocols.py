"""What the measurements send in each protocol, and what they read out of an answer."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server_client import events_of

PARAMETERS = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@dataclass(frozen=True)
class Protocol:
    """body: of a prompt, whether a tool is offered, and whether the answer streams.

    whole, streamed: the answers' texts, one for each sample; of a tool call its argument. Both raise ValueError for an
    answer that is not well-formed.
    """

    path: str
    body: Callable[[str, bool, bool], dict[str, Any]]
    whole: Callable[[Any], list[str]]
    streamed: Callable[[bytes], list[str]]
    has_tools: bool = True


def chat_body(prompt: str, has_tool: bool, stream: bool) -> dict[str, Any]:
    function = {"name": "note", "description": "Takes a note.", "parameters": PARAMETERS}
    tools = {"tools": [{"type": "function", "function": function}]} if has_tool else {}
    messages = [{"role": "user", "content": prompt}]
    return {"messages": messages, "stream": stream, "stream_options": {"include_usage": True}, **tools}


def chat_whole(answer: Any) -> list[str]:
    return [_chat_text(choice["message"], choice["finish_reason"]) for choice in answer["choices"]]


def _chat_text(message: Any, reason: str) -> str:
    _require(reason in ("stop", "length", "tool_calls"), f"finish_reason {reason}")
    calls = message.get("tool_calls") or []
    _require(bool(calls) == (reason == "tool_calls"), "calls without their finish_reason, or the other way round")
    return _argument(calls[0]["function"]["arguments"]) if calls else message["content"]


def chat_streamed(body: bytes) -> list[str]:
    *chunks, last = events_of(body)
    _require(last == "[DONE]", "no [DONE] at the end")
    _raise_error(chunks)
    _require(len({chunk["id"] for chunk in chunks}) == 1, "several ids in one stream")
    _require(chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] >= 0, "no usage at the end")
    texts: dict[int, str] = {}
    calls: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        index, delta = choice["index"], choice["delta"]
        _require(index not in reasons, "something comes after finish_reason")
        texts[index] = texts.get(index, "") + (delta.get("content") or "")
        for call in delta.get("tool_calls", []):
            calls[index] = calls.get(index, "") + call["function"].get("arguments", "")
        if choice["finish_reason"]:
            reasons[index] = choice["finish_reason"]
    _require(reasons.keys() == texts.keys(), "a sample without finish_reason")
    return [_argument(calls[index]) if index in calls else texts[index] for index in sorted(texts)]


def completions_body(prompt: str, has_tool: bool, stream: bool) -> dict[str, Any]:
    return {"prompt": prompt, "stream": stream, "max_tokens": 4096}


def completions_whole(answer: Any) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def completions_streamed(body: bytes) -> list[str]:
    *chunks, last = events_of(body)
    _require(last == "[DONE]", "no [DONE] at the end")
    _raise_error(chunks)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    _require(any(choice.get("finish_reason") for choice in choices), "no finish_reason")
    return ["".join(choice["text"] for choice in choices)]


def responses_body(prompt: str, has_tool: bool, stream: bool) -> dict[str, Any]:
    tools = {"tools": [{"type": "function", "name": "note", "parameters": PARAMETERS}]} if has_tool else {}
    return {"input": prompt, "stream": stream, "store": False, **tools}


def responses_whole(answer: Any) -> list[str]:
    _require(answer["status"] in ("completed", "incomplete"), f"status {answer['status']}")
    items = [item for item in answer["output"] if item["type"] in ("message", "function_call")]
    item = items[-1]
    if item["type"] == "function_call":
        return [_argument(item["arguments"])]
    return ["".join(part["text"] for part in item["content"])]


def responses_streamed(body: bytes) -> list[str]:
    events = events_of(body)
    _raise_error(events)
    _require(events[0]["type"] == "response.created", "no response.created at the beginning")
    _require(events[-1]["type"] in ("response.completed", "response.incomplete"), f"ends with {events[-1]['type']}")
    _require([event["sequence_number"] for event in events] == list(range(len(events))), "sequence numbers have gaps")
    texts = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    arguments = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    text = _argument("".join(arguments)) if arguments else "".join(texts)
    _require([text] == responses_whole(events[-1]["response"]), "the deltas are not the whole")
    return [text]


def messages_body(prompt: str, has_tool: bool, stream: bool) -> dict[str, Any]:
    tools = {"tools": [{"name": "note", "input_schema": PARAMETERS}]} if has_tool else {}
    messages = [{"role": "user", "content": prompt}]
    return {"model": "null", "max_tokens": 4096, "messages": messages, "stream": stream, **tools}


def messages_whole(answer: Any) -> list[str]:
    block = answer["content"][-1]
    _require((block["type"] == "tool_use") == (answer["stop_reason"] == "tool_use"), "stop_reason does not fit")
    return [block["input"]["text"] if block["type"] == "tool_use" else block["text"]]


def messages_streamed(body: bytes) -> list[str]:
    events = events_of(body)
    _raise_error(events)
    kinds = [event["type"] for event in events if event["type"] != "ping"]
    _require(kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"], f"ends with {kinds[-2:]}")
    _require(kinds.count("content_block_start") == kinds.count("content_block_stop"), "a block that does not end")
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    arguments = "".join(delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta")
    return [_argument(arguments) if arguments else "".join(delta.get("text", "") for delta in deltas)]


PROTOCOLS = (
    Protocol("/v1/chat/completions", chat_body, chat_whole, chat_streamed),
    Protocol("/v1/responses", responses_body, responses_whole, responses_streamed),
    Protocol("/v1/messages", messages_body, messages_whole, messages_streamed),
    Protocol("/v1/completions", completions_body, completions_whole, completions_streamed, has_tools=False),
)


class StreamedError(ValueError):
    """The stream says that the request failed."""


def _raise_error(events: list[Any]) -> None:
    for event in events:
        if "error" in event or event.get("type") in ("error", "response.failed"):
            raise StreamedError(json.dumps(event))


def _argument(arguments: str) -> str:
    return str(json.loads(arguments)["text"])


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
