"""Text <-> tokens <-> messages: tokenizer, chat formats, prompts for code, and the tool-call parser. No torch here."""

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
