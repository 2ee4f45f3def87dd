"""The items of a response's input as the messages of a chat.

What an answer was made of comes back as items of their own: reasoning, text and calls become one message again, so that
the prompt begins as the one before did. Ids are left out: they differ from session to session.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from codemill.errors import UsageError
from codemill.server.errors import ApiError
from codemill.server.protocols.conversation import as_arguments
from codemill.server.protocols.responses_tools import INPUT, flat_name
from codemill.server.unknown import note_unknown

# Calls of tools that clients run themselves: the name that the model sees, and where their arguments are.
BUILT_IN_CALLS = {
    "local_shell_call": ("local_shell", "action"),
    "shell_call": ("shell", "action"),
    "apply_patch_call": ("apply_patch", "operation"),
    "tool_search_call": ("tool_search", "arguments"),
}
RESULTS = (
    "function_call_output",
    "custom_tool_call_output",
    "local_shell_call_output",
    "shell_call_output",
    "apply_patch_call_output",
    "tool_search_output",
)
TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text", "refusal")
PARTS = (*TEXTS, "input_image", "input_file")
NOT_TEXT = "[an image or a file, which this model cannot see]"
ENCODED = "codemill.reasoning."  # what `encrypted_content` begins with: nothing is secret, it is only carried


def messages_of(instructions: str | Sequence[Any] | None, items: str | Sequence[Any] | None) -> list[dict[str, Any]]:
    """The conversation. Raises UsageError for what cannot be read, ApiError for what would have to be stored."""
    conversation = _Conversation()
    for part, role in ((instructions, "system"), (items, "user")):
        if isinstance(part, str):
            conversation.add({"role": role, "content": part})
        else:
            for item in part or ():
                conversation.add(item)
    messages = [message for message in conversation.messages if "content" in message or "tool_calls" in message]
    if not messages:
        raise UsageError("input: the conversation is empty; give at least one message")
    return messages


def encode_reasoning(text: str) -> str:
    """Reasoning as `encrypted_content`, for clients that send back nothing else of it."""
    return ENCODED + base64.b64encode(text.encode()).decode()


class _Conversation:
    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def add(self, item: Any) -> None:
        if not isinstance(item, Mapping):
            raise UsageError(f"input: expected a list of items, found {type(item).__name__} in it")
        kind = str(item.get("type") or ("message" if "role" in item else "item_reference"))
        if kind == "message":
            self._add_message(item)
        elif kind == "reasoning":
            if text := _reasoning(item):
                self._add_reasoning(text)
        elif kind == "item_reference":
            raise ApiError(400, "input: item_reference: nothing is stored here; send the item", "unsupported", "input")
        elif kind in RESULTS:
            self.messages.append({"role": "tool", "content": _result(item)})
        elif kind in BUILT_IN_CALLS or kind in ("function_call", "custom_tool_call"):
            self._add_call(*_call(kind, item))
        else:
            note_unknown("an input item", kind)

    def _add_message(self, item: Mapping[str, Any]) -> None:
        text = _text(item.get("content"))
        if item.get("role") == "assistant" and self._has_only_reasoning():
            self.messages[-1]["content"] = text
        else:
            self.messages.append({"role": item.get("role"), "content": text})

    def _add_reasoning(self, text: str) -> None:
        if not self._has_only_reasoning():
            self.messages.append({"role": "assistant", "reasoning_content": ""})
        self.messages[-1]["reasoning_content"] += text

    def _add_call(self, name: str, arguments: dict[str, Any]) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant"})
        calls = self.messages[-1].setdefault("tool_calls", [])
        calls.append({"type": "function", "function": {"name": name, "arguments": arguments}})

    def _has_only_reasoning(self) -> bool:
        last = self.messages[-1] if self.messages else {"role": "user"}
        return last["role"] == "assistant" and "content" not in last and "tool_calls" not in last


def _call(kind: str, item: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of what is called, as the model sees it, and the arguments."""
    if kind in BUILT_IN_CALLS:
        built_in, where = BUILT_IN_CALLS[kind]
        return built_in, as_arguments(item.get(where))
    name, namespace = item.get("name"), item.get("namespace")
    if not isinstance(name, str) or not name:
        raise UsageError(f"input: an item of type {kind} has no name")
    flat = flat_name(name, namespace if isinstance(namespace, str) else None)
    if kind == "custom_tool_call":
        return flat, {INPUT: str(item.get("input") or "")}
    return flat, as_arguments(item.get("arguments"))


def _text(content: Any) -> str:
    """The text of a message. Raises UsageError for an image, a file or what else is none."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise UsageError(f"input: content must be text or a list of parts, found {type(content).__name__}")
    return "".join(_message_part(part) for part in content)


def _message_part(part: Any) -> str:
    text = _part_text(part)
    if text is None:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise UsageError(f"input: a content part of type {kind!r} is not text, and this model reads only text")
    return text


def _result(item: Mapping[str, Any]) -> str:
    """What a tool gave back. An image in it must not end the conversation, but the model is told."""
    output = item.get("output", item.get("tools"))
    if output is None or isinstance(output, str):
        return output or ""
    if isinstance(output, list) and all(_is_part(part) for part in output):
        return "".join(NOT_TEXT if (text := _part_text(part)) is None else text for part in output)
    return json.dumps(output, ensure_ascii=False)


def _is_part(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, Mapping) and part.get("type") in PARTS)


def _part_text(part: Any) -> str | None:
    """The text of a content part, None if it is something else."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return None
    text = part.get("refusal") if part.get("type") == "refusal" else part.get("text")
    return text if isinstance(text, str) and part.get("type", "text") in TEXTS else None


def _reasoning(item: Mapping[str, Any]) -> str:
    """What was thought; empty if only another server could read it."""
    content = item.get("content")
    if isinstance(content, list) and content:
        return "".join(_part_text(part) or "" for part in content)
    encoded = item.get("encrypted_content")
    if isinstance(encoded, str) and encoded.startswith(ENCODED):
        try:
            return base64.b64decode(encoded.removeprefix(ENCODED), validate=True).decode()
        except ValueError:
            return ""
    return ""
