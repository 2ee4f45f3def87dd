"""Where statements begin in Python source that a model wrote: a scanner in place of a parser.

`ast.parse` needs gigabytes for megabytes of text and may overflow the C stack on deep nesting, and it has no answer for
text that is cut short. This scanner is linear, holds nothing, and takes any text: it knows comments, strings, brackets
and line continuations. A bracket that is never closed ends where a line begins with `def`, `class`, `import` or `@`,
which cannot stand inside brackets.
"""

import io
import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""
      \#[^\n]*
    | \"{3}(?:[^"\\]++|\\.|"(?!""))*+(?:\"{3})?
    | '{3}(?:[^'\\]++|\\.|'(?!''))*+(?:'{3})?
    | "(?:[^"\\\n]++|\\.)*+"?
    | '(?:[^'\\\n]++|\\.)*+'?
    | \\\n
    | [(\[{]+
    | [)\]}]+
    | \n
    """,
    re.VERBOSE | re.DOTALL,
)
_OPENERS, _CLOSERS = frozenset("([{"), frozenset(")]}")
_NEVER_IN_BRACKETS = re.compile(
    r"(?:async[ \t]+def|def|class)[ \t]+\w|@\w|import[ \t]+\w|from[ \t]+[\w.]+[ \t]+import\b"
)
_CLAUSE = re.compile(r"(?:else|elif|except|finally)\b")
_INDENT = re.compile(r"[ \t]*")


def logical_lines(text: str) -> Iterator[int]:
    """Offsets of the lines that do not lie inside a string, brackets or a continued line. Blank ones are among them."""
    yield 0
    depth = 0
    for token in _TOKEN.finditer(text):
        first = text[token.start()]
        if first in _OPENERS:
            depth += token.end() - token.start()
        elif first in _CLOSERS:
            depth = max(0, depth - token.end() + token.start())
        elif first == "\n":
            if depth and _NEVER_IN_BRACKETS.match(text, token.end()):
                depth = 0
            if not depth:
                yield token.end()


def top_level(text: str) -> Iterator[int]:
    """Offsets of the statements without indentation. A comment is none, and `else` belongs to what it follows."""
    for offset in logical_lines(text):
        if text[offset : offset + 1] not in ("", " ", "\t", "\n", "\r", "\f", "#") and not _CLAUSE.match(text, offset):
            yield offset


def top_level_statements(text: str) -> Iterator[str]:
    """The text, cut before each statement without indentation: joined, the pieces are the text."""
    start = 0
    for offset in top_level(text):
        if offset:
            yield text[start:offset]
        start = offset
    yield text[start:]


def defines(text: str, name: str) -> bool:
    """Whether a line without indentation defines the name: a function, a class or an assignment."""
    pattern = rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*(?::[^=\n]*)?=(?!=)"
    return re.search(pattern, text, re.MULTILINE) is not None


def indented(text: str, indent: str = "    ") -> str:
    """The statements of a function's body, moved to `indent`. Lines inside strings and brackets stay as they are.

    Models often lose the white space in front of the first line alone; then only the other lines have their depth.
    """
    first = next(_code_lines(text), None)
    if first is None:
        return text
    shift = _shift(text, len(indent))
    out, end = io.StringIO(), 0
    for offset in logical_lines(text):
        filled = _after_indent(text, offset)
        if text[filled : filled + 1] in ("", "\n", "\r"):
            continue
        by = len(indent) - _width(text, first) if offset <= first else shift
        out.write(text[end:offset])
        out.write(" " * max(0, _width(text, offset) + by))
        end = filled
    out.write(text[end:])
    return out.getvalue()


def lost_first_indent(text: str) -> bool:
    """Whether all lines of code but the first are indented, and not only as the block that the first one opens."""
    first, second, least = _depths(text)
    if first or not least:
        return False
    return second > least or not _opens_block(text)


def _shift(text: str, target: int) -> int:
    """How far the lines after the first line of code move, for it to stand at `target`."""
    width, second, least = _depths(text)
    if least <= width:
        return target - width
    if not _opens_block(text) or second > least:
        return target - least
    return target + 4 - least if least >= width + 8 else target - width


def _depths(text: str) -> tuple[int, int, int]:
    """The indentation of the first line of code, of the second, and the least of all after the first (0 if none)."""
    widths = (_width(text, offset) for offset in _code_lines(text))
    first, second = next(widths, 0), next(widths, 0)
    return first, second, min(second, min(widths, default=second))


def _opens_block(text: str) -> bool:
    lines = _code_lines(text)
    first = next(lines, 0)
    return text[first : next(lines, len(text))].rstrip().endswith(":")


def _code_lines(text: str) -> Iterator[int]:
    for offset in logical_lines(text):
        start = _after_indent(text, offset)
        if text[start : start + 1] not in ("", "\n", "\r", "#"):
            yield offset


def _after_indent(text: str, offset: int) -> int:
    match = _INDENT.match(text, offset)
    return match.end() if match else offset


def _width(text: str, offset: int) -> int:
    return len(text[offset : _after_indent(text, offset)].expandtabs(4))
