"""Code in languages with braces, as a model wrote it: what is code in it, and where its blocks end. Linear, and made
for any text."""

import re
from functools import cache

_COMMENTS = r"//[^\n]*+|/\*(?:[^*]++|\*(?!/))*+(?:\*/)?"
_DOUBLE = r'"(?:[^"\\\n]++|\\.)*+"?'
_CHARACTER = r"'(?:\\[^'\n]{1,9}|[^'\\\n])'"  # not Rust's lifetimes
_LITERALS = {
    "js": rf"{_DOUBLE}|'(?:[^'\\\n]++|\\.)*+'?|`(?:[^`\\]++|\\.)*+`?",
    "go": rf"{_DOUBLE}|{_CHARACTER}|`[^`]*+`?",
    "rust": rf'"(?:[^"\\]++|\\.)*+"?|{_CHARACTER}',
}
_VISIBLE = re.compile(r"[^\n]")


@cache
def _not_code(language: str) -> re.Pattern[str]:
    literals = _LITERALS.get(language, rf"{_DOUBLE}|{_CHARACTER}")
    return re.compile(f"{_COMMENTS}|{literals}", re.DOTALL)


def code_only(text: str, language: str) -> str:
    """The text with spaces for comments and literals: as long, with the same lines."""
    return _not_code(language).sub(lambda found: _VISIBLE.sub(" ", found[0]), text)


def end_of_block(code: str, start: int = 0, depth: int = 0) -> int | None:
    """Behind the brace that closes all blocks, `depth` of which are open at `start`; None if none does.

    code: without comments and literals (see `code_only`).
    """
    for brace in re.compile(r"[{}]").finditer(code, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    return None


def open_blocks(code: str) -> int:
    """How many blocks are open at the end; below 0 if more are closed than were opened."""
    return code.count("{") - code.count("}")


def without_block(text: str, language: str, head: str) -> str:
    """The text without every block whose beginning, up to its brace, the pattern `head` finds."""
    code, kept, position = code_only(text, language), [], 0
    for found in re.finditer(head, code):
        if found.start() < position:
            continue
        kept.append(text[position : found.start()])
        end = end_of_block(code, found.start())
        if end is None:
            return "".join(kept)
        position = end
    return "".join([*kept, text[position:]])
