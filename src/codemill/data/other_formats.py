"""Records as other trainers write them, brought into our form: ShareGPT, Alpaca, and OpenAI's calls of before 2023-11.

What a record says in a form of ours stays as it is. Faults are UsageErrors, as in `conversation_formats`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from codemill.errors import UsageError

Json = Mapping[str, Any]
_MESSAGES = ("messages", "prompt", "completion", "chosen", "rejected")
_ROLES = {  # of ShareGPT and its relatives
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
}


def to_our_form(record: Json) -> Json:
    """The record with "messages", or "prompt" and its answers, whoever's form it has."""
    if "messages" not in record and "conversations" in record:
        record = _share_gpt(record)
    elif "messages" not in record and "instruction" in record:
        record = _alpaca(record)
    changed = {key: _messages(record[key]) for key in _MESSAGES if key in record}
    for key in ("messages", "prompt"):
        if isinstance(messages := changed.get(key), list):
            changed[key] = [*_system(record, messages), *messages]
    if record.get("functions") and not record.get("tools"):
        changed["tools"] = record["functions"]
    return {**record, **changed}


def _share_gpt(record: Json) -> Json:
    """{"conversations": [{"from", "value"}]}; with "chosen" and "rejected" it is what they answer."""
    return {**record, "prompt" if "chosen" in record else "messages": record["conversations"]}


def _alpaca(record: Json) -> Json:
    """{"instruction", "input", "output", "history"}, or without "output" the prompt of two answers."""
    texts = {key: record.get(key) or "" for key in ("instruction", "input")}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise UsageError(f"{key} must be text, found {type(text).__name__}")
    question = "\n".join(filter(None, texts.values()))
    messages = [*_history(record), {"role": "user", "content": question}]
    if "output" in record:
        return {**record, "messages": [*messages, {"role": "assistant", "content": record["output"]}]}
    return {**record, "prompt": messages}


def _system(record: Json, messages: Sequence[Any]) -> list[Json]:
    """A system message that stands beside the messages, as Anthropic's API has it."""
    text, first = record.get("system"), messages[0] if messages else None
    has_one = isinstance(first, Mapping) and first.get("role") in ("system", "developer")
    return [{"role": "system", "content": text}] if text and not has_one else []


def _history(record: Json) -> list[Json]:
    """Earlier questions with their answers, as pairs."""
    pairs = record.get("history") or ()
    if not isinstance(pairs, Sequence) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise UsageError("history must be a list of pairs: a question and its answer")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _messages(value: Any) -> Any:
    """A list of messages with roles and calls as we know them, a single message as a list; all else as it is."""
    if isinstance(value, Mapping) and ("content" in value or "value" in value):
        value = [value]
    if not isinstance(value, list):
        return value
    return [_message(each, f"message {i}") if isinstance(each, Mapping) else each for i, each in enumerate(value)]


def _message(message: Json, where: str) -> Json:
    if "from" in message and "role" not in message:
        rest = {key: value for key, value in message.items() if key not in ("from", "value")}
        message = {"role": message["from"], "content": message.get("value"), **rest}
    role, call = message.get("role"), message.get("function_call")
    if role == "function_call":
        message = {**message, "content": "", "tool_calls": _calls(message.get("content"), where)}
    elif call and not message.get("tool_calls"):
        message = {**message, "tool_calls": [{"type": "function", "function": call}]}
    return {**message, "role": _ROLES[role]} if isinstance(role, str) and role in _ROLES else message


def _calls(text: Any, where: str) -> list[Any]:
    """The calls that a message of the role "function_call" spells as JSON, one or a list."""
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        raise UsageError(f"{where}: the function call is not valid JSON: {error}") from None
    return list(value) if isinstance(value, list) else [value]
