"""Text <-> tokens <-> messages: tokenizer, chat formats, prompts for code, and the tool-call parser. No torch here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codemill.chat.detokenizer import Detokenizer
    from codemill.chat.messages import normalize_messages, normalize_tools
    from codemill.chat.prompts import fim_ids, fim_stop_ids, repository_ids
    from codemill.chat.reasoning import ReasoningSplitter, split_reasoning
    from codemill.chat.tokenizer import Tokenizer
    from codemill.chat.tool_parser import ToolCallParser
    from codemill.chat.tool_types import (
        ArgumentsDelta,
        CallEnd,
        CallStart,
        ContentDelta,
        ParsedMessage,
        ParseProblem,
        ToolCall,
        repeated_calls,
    )

__all__ = [
    "ArgumentsDelta",
    "CallEnd",
    "CallStart",
    "ContentDelta",
    "Detokenizer",
    "ParseProblem",
    "ParsedMessage",
    "ReasoningSplitter",
    "Tokenizer",
    "ToolCall",
    "ToolCallParser",
    "fim_ids",
    "fim_stop_ids",
    "normalize_messages",
    "normalize_tools",
    "repeated_calls",
    "repository_ids",
    "split_reasoning",
]

_EXPORTS = {
    "Detokenizer": "codemill.chat.detokenizer",
    "normalize_messages": "codemill.chat.messages",
    "normalize_tools": "codemill.chat.messages",
    "fim_ids": "codemill.chat.prompts",
    "fim_stop_ids": "codemill.chat.prompts",
    "repository_ids": "codemill.chat.prompts",
    "ReasoningSplitter": "codemill.chat.reasoning",
    "split_reasoning": "codemill.chat.reasoning",
    "Tokenizer": "codemill.chat.tokenizer",
    "ToolCallParser": "codemill.chat.tool_parser",
    "ArgumentsDelta": "codemill.chat.tool_types",
    "CallEnd": "codemill.chat.tool_types",
    "CallStart": "codemill.chat.tool_types",
    "ContentDelta": "codemill.chat.tool_types",
    "ParsedMessage": "codemill.chat.tool_types",
    "ParseProblem": "codemill.chat.tool_types",
    "ToolCall": "codemill.chat.tool_types",
    "repeated_calls": "codemill.chat.tool_types",
}


def __getattr__(name: str) -> Any:
    # On first use: the agent's terminal needs one of them before its prompt stands, and all take 30 ms.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
