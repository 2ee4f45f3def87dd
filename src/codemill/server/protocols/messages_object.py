"""Anthropic's message, as it is answered whole, and what of it the events of a stream hold as well."""

import os
from typing import Any

from codemill.chat.tool_types import ToolCall
from codemill.server.answer import Answer, Sample
from codemill.server.events import Finish, Usage

# Clients send thinking back only if it is signed. Nothing is checked here: whose thinking it is makes no difference.
SIGNATURE = "codemill"
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def message_object(model: str, answer: Answer) -> dict[str, Any]:
    """The whole answer."""
    (sample,) = answer.samples
    finish = Finish(0, sample.finish_reason, sample.stop_sequence)
    return {**empty_message(model), "content": _content(sample), **stop(finish), "usage": usage_object(answer.usage)}


def empty_message(model: str) -> dict[str, Any]:
    """An answer of which nothing is known yet."""
    head = {"id": f"msg_{os.urandom(12).hex()}", "type": "message", "role": "assistant", "model": model}
    return {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage_object(Usage())}


def stop(finish: Finish) -> dict[str, Any]:
    """Why the answer ended."""
    if finish.stop_sequence is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": finish.stop_sequence}
    return {"stop_reason": STOP_REASONS[finish.reason], "stop_sequence": None}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Anthropic's usage: input_tokens are those that had to be computed."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def tool_use_block(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A call."""
    return {"type": "tool_use", "id": call_id.replace("call_", "toolu_", 1), "name": name, "input": arguments}


def text_block(text: str = "") -> dict[str, Any]:
    """A piece of text."""
    return {"type": "text", "text": text}


def thinking_block(text: str = "", signature: str = "") -> dict[str, Any]:
    """What the model thought."""
    return {"type": "thinking", "thinking": text, "signature": signature}


def _content(sample: Sample) -> list[dict[str, Any]]:
    """The blocks; of an answer that says nothing an empty text, as clients look at the first block."""
    thoughts = [thinking_block(sample.reasoning, SIGNATURE)] if sample.reasoning else []
    return thoughts + ([_block(part) for part in sample.parts] or [text_block()])


def _block(part: str | ToolCall) -> dict[str, Any]:
    if isinstance(part, str):
        return text_block(part)
    return tool_use_block(part.id, part.name, part.arguments)
