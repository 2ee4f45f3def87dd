"""Where a source file is cut for completion: single lines, spans of lines, and bodies of functions."""

import re
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from codemill.eval.python_text import logical_lines

Kind = Literal["line", "span", "function"]
KINDS: tuple[Kind, ...] = ("line", "span", "function")
PER_FILE = {"line": 2, "span": 1, "function": 1}

BRACES = frozenset(".c .cc .cpp .cs .cxx .dart .go .h .hpp .java .js .jsx .kt .php .rs .scala .swift .ts .tsx".split())
_SPAN_LINES = (2, 6)
_LONGEST = 1_500  # characters of a hole
_MOST_LINES = 25
_FEWEST_LETTERS = 5
_NO_CODE = ("#", "//", "/*", "*", "--", ";", "%", '"""', "'''")
_DEF = re.compile(r"[ \t]*(?:async[ \t]+)?def[ \t]+\w")
_CODE = re.compile(r"[ \t]*[^\s#]")
_DOCSTRING = re.compile(r"""[ \t]*[rRuU]?["']""")
_HEADER = re.compile(
    r"^(?P<indent>[ \t]*+)(?!(?:if|for|foreach|while|switch|catch|else|do|try|return|match|with|using|lock)\b|[}#/*])"
    r"[^\n;]*\)[^\n;{}]*\{[ \t]*\n",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Hole:
    """What is cut out: `text[start:end]`. line: where it begins, from 1."""

    kind: Kind
    start: int
    end: int
    line: int


def cut_holes(text: str, suffix: str, random: Random) -> list[Hole]:
    """A few holes of each kind, drawn with `random`. `suffix` is that of the file's name."""
    found = []
    for kind in KINDS:
        options = list(_spans(kind, text, suffix, random))
        for start, end in random.sample(options, min(PER_FILE[kind], len(options))):
            found.append(Hole(kind, start, end, text.count("\n", 0, start) + 1))
    return found


_Span = tuple[int, int]


def _spans(kind: Kind, text: str, suffix: str, random: Random) -> Iterator[_Span]:
    if kind == "line":
        yield from _code_lines(text)
    elif kind == "span":
        yield from filter(None, [_several_lines(text, start, random) for start, _ in _code_lines(text)])
    elif suffix in (".py", ".pyi"):
        yield from (span for span in _python_bodies(text) if _is_fit(text, span))
    elif suffix in BRACES:
        yield from (span for span in _braced_bodies(text) if _is_fit(text, span))


def _code_lines(text: str) -> Iterator[_Span]:
    """Lines with something to guess in them, from after their indentation to their end."""
    start, quoted = 0, False
    for line in text.split("\n"):
        code = line.strip()
        quotes = code.count('"""') + code.count("'''")
        letters = sum(map(str.isalnum, code))
        if not quoted and not quotes and letters >= _FEWEST_LETTERS and not code.startswith(_NO_CODE):
            begin = start + len(line) - len(line.lstrip())
            yield begin, begin + len(code)
        quoted ^= quotes % 2 == 1
        start += len(line) + 1


def _several_lines(text: str, start: int, random: Random) -> _Span | None:
    """From the code line at `start` to the end of a line further on; blank lines do not count."""
    wanted, end = random.randint(*_SPAN_LINES), start
    for _ in range(wanted):
        while end < len(text) and text[end].isspace():
            end += 1
        line_end = text.find("\n", end)
        if line_end < 0:
            return None
        end = line_end
    return (start, start + len(text[start:end].rstrip())) if end - start <= _LONGEST else None


def _python_bodies(text: str) -> Iterator[_Span]:
    """Bodies of functions, without their docstrings."""
    offsets = [*logical_lines(text), len(text)]
    lines = [offset for offset in offsets if _CODE.match(text, offset)]
    for i, offset in enumerate(lines):
        if not _DEF.match(text, offset):
            continue
        inside = list(_while_deeper(text, lines[i + 1 :], _indentation(text, offset)))
        if inside and _DOCSTRING.match(text, inside[0]):
            inside = inside[1:]
        if inside:
            yield _trimmed(text, inside[0], offsets[bisect(offsets, inside[-1])])


def _while_deeper(text: str, offsets: list[int], indent: int) -> Iterator[int]:
    for offset in offsets:
        if _indentation(text, offset) <= indent:
            return
        yield offset


def _indentation(text: str, offset: int) -> int:
    end = offset
    while text[end : end + 1] in (" ", "\t"):
        end += 1
    return len(text[offset:end].expandtabs(8))


def _braced_bodies(text: str) -> Iterator[_Span]:
    """What stands between a line that ends in `) ... {` and the line that begins, as deep, with `}`."""
    for header in _HEADER.finditer(text):
        closing = re.compile(rf"^{re.escape(header['indent'])}\}}", re.MULTILINE).search(text, header.end())
        if closing and _indentation(text, header.end()) > _indentation(text, header.start()):
            yield _trimmed(text, header.end(), closing.start())


def _trimmed(text: str, start: int, end: int) -> _Span:
    body = text[start:end]
    first = start + len(body) - len(body.lstrip())
    return first, max(first, start + len(body.rstrip()))


def _is_fit(text: str, span: _Span) -> bool:
    body = text[span[0] : span[1]]
    letters = sum(map(str.isalnum, body))
    return letters >= _FEWEST_LETTERS and len(body) <= _LONGEST and body.count("\n") < _MOST_LINES
