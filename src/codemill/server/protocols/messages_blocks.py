"""Anthropic's content blocks as text.

Nothing that a client changes from turn to turn goes into the prompt: no cache markers, signatures or ids; and a text
reads the same alone and in a block.
"""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from codemill.errors import UsageError
from codemill.server.protocols.messages_tools import DeclaredTools
from codemill.server.unknown import note_unknown

UNREADABLE = ("image", "document", "container_upload")


class Block(NamedTuple):
    """One block; place: where in the body it stands."""

    place: str
    content: Mapping[str, Any]

    @property
    def type(self) -> Any:
        return self.content.get("type")


class BlockReader:
    """Reads blocks as text. `loaded` are the names of the tools that they made known."""

    def __init__(self, tools: DeclaredTools) -> None:
        self._tools = tools
        self.loaded: list[str] = []
        self._known: set[str] = set()

    def text(self, blocks: Iterable[Block], is_result: bool = False) -> str:
        """What blocks say, each from a line of its own; those of unknown types are left out, with a line in the log.

        is_result: they are what a tool brought. Nobody can take that back, so that it must not end the conversation.
        Raises UsageError for a block that cannot be read.
        """
        texts: list[str] = []
        for kind, group in groupby(blocks, lambda block: block.type):
            if kind == "tool_reference":
                texts.append(self._load([_name(block.content) for block in group]))
            else:
                texts += [self._text(block, is_result) for block in group]
        return "\n".join(text for text in texts if text)

    def _text(self, block: Block, is_result: bool) -> str:
        text = _plain_text(block)
        if text is not None:
            return text
        if block.type == "tool_addition":
            return self._add(block)
        if block.type == "tool_removal":
            return f"The tool {_name(block.content.get('tool'))} is no longer available."
        if block.type not in UNREADABLE:
            note_unknown("a block", block.type)
            return ""
        if not is_result:
            raise UsageError(f"{block.place}: this model reads only text, no block of type {block.type}")
        return f"[{block.type}: left out, this model reads only text]"

    def _load(self, names: list[str]) -> str:
        """Definitions, each where it is first referred to: a body that repeats a reference must not become a flood."""
        new = [name for name in dict.fromkeys(names) if name not in self._known]
        self._known.update(new)
        self.loaded += new
        return self._tools.description(new) if new else "These tools are described above."

    def _add(self, block: Block) -> str:
        tool = block.content.get("tool")
        if isinstance(tool, Mapping) and "definition" in tool:
            self._tools.declare(tool["definition"], f"{block.place}.tool.definition")
        name = _name(tool)
        return self._load([name]) if self._tools.is_deferred(name) else f"The tool {name} is now available."


def blocks_of(content: Any, place: str) -> list[Block]:
    """The blocks of what may also be text, or nothing. Raises UsageError."""
    if content is None:
        return []
    if isinstance(content, str):
        return [Block(place, {"type": "text", "text": content})]
    if not isinstance(content, list):
        raise UsageError(f"{place}: must be text or a list of blocks, not {type(content).__name__}")
    return [_block(each, f"{place}.{i}") for i, each in enumerate(content)]


def _block(content: Any, place: str) -> Block:
    if isinstance(content, str):
        content = {"type": "text", "text": content}
    if not isinstance(content, Mapping):
        raise UsageError(f"{place}: must be a block, not {type(content).__name__}")
    return Block(place, content)


def _plain_text(block: Block) -> str | None:
    """The text of a block that is text, whatever it is called; None for others."""
    content = block.content
    if block.type == "text":
        if not isinstance(content.get("text"), str):
            raise UsageError(f"{block.place}.text: must be text")
        return str(content["text"])
    if block.type == "search_result":
        return _titled(content, ("title", "source"), _texts_of(content.get("content")) or "")
    source = content.get("source")
    if block.type == "document" and isinstance(source, Mapping):
        text = source.get("data") if source.get("type") == "text" else _texts_of(source.get("content"))
        return _titled(content, ("title", "context"), text) if isinstance(text, str) else None
    return None


def _titled(content: Mapping[str, Any], names: tuple[str, ...], text: str) -> str:
    return "\n".join([*(str(content[name]) for name in names if content.get(name)), text])


def _texts_of(content: Any) -> str | None:
    """The texts of a list of text blocks; None if there is anything else in it."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [each.get("text") if isinstance(each, Mapping) else None for each in content]
    return "\n".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else None


def _name(reference: Any) -> str:
    """The tool that a reference means."""
    if not isinstance(reference, Mapping):
        return ""
    definition = reference.get("definition")
    inner = definition if isinstance(definition, Mapping) else reference
    return str(inner.get("tool_name") or inner.get("name") or "")
