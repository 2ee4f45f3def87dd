"""Anthropic's messages as the messages that chat templates know."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from codemill.errors import UsageError
from codemill.server.protocols.conversation import as_arguments
from codemill.server.protocols.messages_blocks import Block, BlockReader, blocks_of

# What Claude Code's system prompt begins with, such as "x-anthropic-billing-header: cc_version=2.1.332.8ff;
# cc_entrypoint=sdk-cli;" in a block of its own. The version's last part is a hash of the first message: with it in the
# prompt, no conversation could use again what was computed for another one, not even tools and system prompt.
BILLING_LINE = re.compile(r"\s*x-anthropic-billing-header:[^\n]*\n?")
ERROR = re.compile(r"\W*\w*error", re.IGNORECASE)  # how a result begins that says itself that it is one
OF_ANSWERS = ("thinking", "redacted_thinking", "tool_use")
Message = dict[str, Any]


def read_messages(reader: BlockReader, system: Any, messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """All messages, the system prompt first. Raises UsageError naming the block that is wrong or cannot be read."""
    prompt = reader.text(map(_without_billing, blocks_of(system, "system")))
    found: list[Message] = [{"role": "system", "content": prompt}] if prompt else []
    for i, message in enumerate(messages):
        found += _messages(reader, message, f"messages.{i}")
    return found


def _without_billing(block: Block) -> Block:
    text = block.content.get("text")
    found = BILLING_LINE.match(text) if isinstance(text, str) else None
    return (
        block if found is None else Block(block.place, {**block.content, "text": block.content["text"][found.end() :]})
    )


def _messages(reader: BlockReader, message: Mapping[str, Any], place: str) -> Iterator[Message]:
    """What one message becomes: each tool result in it is a message here, in the order that they have."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise UsageError(f"{place}.role: must be user, assistant or system, not {str(role)[:40]!r}")
    blocks = blocks_of(content, f"{place}.content")
    if role == "assistant":
        yield _answer(reader, blocks)
        return
    for is_result, group in groupby(blocks, lambda block: block.type == "tool_result"):
        if is_result:
            yield from (_tool_result(reader, block) for block in group)
        elif (text := reader.text(group)) or isinstance(content, str):
            yield {"role": role, "content": text}


def _answer(reader: BlockReader, blocks: list[Block]) -> Message:
    """A turn of the model: what it thought and said, and the calls it made."""
    thoughts = [block.content.get("thinking") for block in blocks if block.type == "thinking"]
    calls = [_call(block) for block in blocks if block.type == "tool_use"]
    text = reader.text(block for block in blocks if block.type not in OF_ANSWERS)
    message: Message = {"role": "assistant", "content": text}
    if any(thoughts):
        message["reasoning_content"] = "\n".join(str(each) for each in thoughts if each)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Block) -> dict[str, Any]:
    name = block.content.get("name")
    if not isinstance(name, str):
        raise UsageError(f"{block.place}.name: must be the name of a tool")
    function = {"name": name, "arguments": as_arguments(block.content.get("input"))}
    return {"id": str(block.content.get("id") or ""), "type": "function", "function": function}


def _tool_result(reader: BlockReader, block: Block) -> Message:
    text = reader.text(blocks_of(block.content.get("content"), f"{block.place}.content"), is_result=True)
    if block.content.get("is_error") and not ERROR.match(text):
        text = f"Error: {text}"
    return {"role": "tool", "content": text, "tool_call_id": str(block.content.get("tool_use_id") or "")}
