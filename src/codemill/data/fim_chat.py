"""Holes in code as conversations: the missing part is asked for and answered as code, or as a search-and-replace block.

Coder-Next's mid-training has fill-in-the-middle "in chat form and in search-and-replace form"; the wording of neither
is published, so these are our own. Blocks are those that editing agents use.
"""

from collections.abc import Sequence
from typing import Any

from codemill.chat.prompts import PathAndContent
from codemill.data.fim import FimExample

MISSING = "[[MISSING]]"
SEARCH, DIVIDER, REPLACE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"
_FILL = f"Some code is missing in `{{path}}` where {MISSING} stands. Write the missing code, and nothing else."
_EDIT = f"Some code is missing in `{{path}}` where {MISSING} stands. Put it there with a search-and-replace block."
Messages = list[dict[str, Any]]


def fill_messages(hole: FimExample, path: str, others: Sequence[PathAndContent] = ()) -> Messages:
    """The missing part is answered as it is, in a block of code."""
    return _dialogue(_FILL, hole, path, others, _fenced(hole.middle))


def edit_messages(hole: FimExample, path: str, others: Sequence[PathAndContent] = ()) -> Messages:
    """The lines with the mark are answered beside the lines that take their place."""
    before, after = hole.prefix.rpartition("\n")[2], hole.suffix.partition("\n")[0]
    old, new = before + MISSING + after, before + hole.middle + after
    return _dialogue(_EDIT, hole, path, others, "\n".join([SEARCH, old, DIVIDER, new, REPLACE]))


def can_ask(hole: FimExample) -> bool:
    """Whether the mark is the only one, so that it says where the hole is."""
    return MISSING not in hole.prefix + hole.middle + hole.suffix


def _dialogue(request: str, hole: FimExample, path: str, others: Sequence[PathAndContent], answer: str) -> Messages:
    holed = (path, hole.prefix + MISSING + hole.suffix)
    files = [f"`{name}`:\n{_fenced(content)}" for name, content in (*others, holed)]
    question = "\n\n".join([*files, request.format(path=path)])
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _fenced(code: str) -> str:
    """A Markdown block; its fence is longer than any in the code."""
    fence = "```"
    while fence in code:
        fence += "`"
    newline = "" if code.endswith("\n") else "\n"
    return f"{fence}\n{code}{newline}{fence}"
