"""Fenced code blocks of an answer in Markdown (CommonMark 4.5), read as leniently as models write them.

A fence may stand behind text on its line, be indented (its lines then lose as much), or never close. Inside Python, a
fence in a triple-quoted string closes nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_OPEN = re.compile(
    r"^(?P<indent>[ \t]*+)(?:>[ ]?|[-*+][ ]++|\d++[.)][ ]++)?(?P<fence>`{3,}+|~{3,}+)[ \t]*+(?P<info>[^\n`]*+)$"
    r"|(?<!`)(?P<inline>`{3,}+)(?P<language>[A-Za-z][\w+#.-]*+)[ \t]*+$",
    re.MULTILINE,
)
_FENCE = re.compile(r"^(?P<indent>[ \t]*+)(?P<fence>`{3,}+|~{3,}+)[ \t]*+(?P<info>[^\n`]*+)$", re.MULTILINE)
_STRING = re.compile(r"""\#[^\n]*|\"{3}|'{3}|"(?:[^"\\\n]++|\\.)*+"?|'(?:[^'\\\n]++|\\.)*+'?""", re.DOTALL)
_NESTING = ("markdown", "md", "text", "txt")  # may show fences; in code, one that names a language is the next block
_PYTHON = ("", "python", "python3", "py", "python2")
# Looking for the end of a fence that has none costs a pass over the text: no real answer has more than a few of them.
_MOST_UNCLOSED = 8


@dataclass(frozen=True)
class Block:
    """One block: its language in lower case ("" if it names none), the lines inside, and where it lies with its
    fences."""

    language: str
    code: str
    start: int
    end: int


def blocks(text: str) -> list[Block]:
    """The fenced blocks of an answer, in order."""
    return list(_blocks(text))


def _blocks(text: str) -> Iterator[Block]:
    last = {quotes: text.rfind(quotes) for quotes in ('"""', "'''")}
    position = unclosed = 0
    while unclosed < _MOST_UNCLOSED and (opening := _OPEN.search(text, position)):
        language = _language(opening["info"] or opening["language"] or "")
        start = min(opening.end() + 1, len(text))
        python = language in _PYTHON
        found = _next_fence(text, start, opening, language, _Strings(start, last) if python else None)
        if found and not found["info"]:
            end, position = found.span()
        else:  # cut short, or closed behind the last line of code
            unclosed += found is None
            end = position = _mark(text, start, opening, _Strings(start, last) if python else None)
        code, indent = text[start:end], opening["indent"] or ""
        yield Block(language, _unindented(code, len(indent)) if indent else code, opening.start(), position)


def _language(info: str) -> str:
    return re.split(r"[\s{},:]", info.strip().lower().lstrip("{."), maxsplit=1)[0]


def _next_fence(
    text: str, start: int, opening: re.Match[str], language: str, strings: "_Strings | None"
) -> re.Match[str] | None:
    """The line that closes the block, or opens another one before this one is closed."""
    fence, indent = opening["fence"] or opening["inline"], opening["indent"] or ""
    for found in _FENCE.finditer(text, start):
        mark = found["fence"]
        if mark[0] != fence[0] or len(mark) < len(fence) or len(found["indent"]) > len(indent) + 3:
            continue
        if found["info"] and language in _NESTING:
            continue
        if strings is None or not strings.inside(text, found.start()):
            return found
    return None


def _mark(text: str, start: int, opening: re.Match[str], strings: "_Strings | None") -> int:
    """Where the fence's marks stand next, wherever on a line; the text's end if nowhere."""
    marks = opening["fence"] or opening["inline"]
    place = text.find(marks, start)
    while place >= 0 and strings is not None and strings.inside(text, place):
        place = text.find(marks, place + 1)
    return place if place >= 0 else len(text)


class _Strings:
    """Tells whether a place lies in a triple-quoted string that ends later. Places must be asked for in order.

    last: where each kind of quotes occurs for the last time in the text.
    """

    def __init__(self, start: int, last: dict[str, int]) -> None:
        self._position, self._last, self._quotes = start, last, ""

    def inside(self, text: str, place: int) -> bool:
        while self._position < place:
            if self._quotes:
                end = text.find(self._quotes, self._position, place)
                self._position = place if end < 0 else end + 3
                self._quotes = self._quotes if end < 0 else ""
            else:
                token = _STRING.search(text, self._position, place)
                self._position = token.end() if token else place
                self._quotes = token[0] if token and token[0] in self._last else ""
        return bool(self._quotes) and self._last[self._quotes] >= place


def _unindented(code: str, width: int) -> str:
    return re.sub(rf"^[ \t]{{1,{width}}}", "", code, flags=re.MULTILINE)
