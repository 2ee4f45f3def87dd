"""Fill-in-the-middle: cut a span out of a text, to be completed from both sides.

Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle"; PSM order, Qwen's tokens.
"""

import random
from dataclasses import dataclass

from codemill.errors import CodemillError

FIM_PREFIX = "<|fim_prefix|>"
FIM_SUFFIX = "<|fim_suffix|>"
FIM_MIDDLE = "<|fim_middle|>"
END_OF_TEXT = "<|endoftext|>"

SINGLE_LINE_SHARE = 0.4
SEVERAL_LINES_SHARE = 0.3
"""The remaining 0.3 are random character spans."""
MIN_LINE_CHARS = 4
MAX_LINES = 8

_Span = tuple[int, int]


@dataclass(frozen=True)
class FimExample:
    """A text in three parts: prefix + middle + suffix is the text, `middle` is what the model writes."""

    prefix: str
    middle: str
    suffix: str


def fim_transform(text: str, rng: random.Random) -> FimExample:
    """Cut out one line (40 %), several lines (30 %) or a random character span (30 %).

    A text without enough lines gets a character span. Raises CodemillError for an empty text.
    """
    if not text:
        raise CodemillError("cannot cut a span out of an empty text; drop empty documents first")
    choice = rng.random()
    span = None
    if choice < SINGLE_LINE_SHARE:
        span = _single_line(text, rng)
    elif choice < SINGLE_LINE_SHARE + SEVERAL_LINES_SHARE:
        span = _several_lines(text, rng)
    if span is None:
        return _cut(text, _characters(text, rng))
    return _cut(text, span if rng.random() < 0.5 else _after_indent(text, span))


def single_line_example(text: str, rng: random.Random) -> FimExample | None:
    """Cut out one line of code, from after its indentation up to its newline; None if there is no fit line.

    Fit is a line of at least 4 characters that is neither blank nor a comment nor in a triple-quoted string.
    """
    span = _single_line(text, rng)
    return None if span is None else _cut(text, _after_indent(text, span))


def fim_text(example: FimExample) -> str:
    """The example as one training text, prefix-suffix-middle, closed by the end token."""
    return f"{FIM_PREFIX}{example.prefix}{FIM_SUFFIX}{example.suffix}{FIM_MIDDLE}{example.middle}{END_OF_TEXT}"


def _single_line(text: str, rng: random.Random) -> _Span | None:
    spans = _code_lines(text)
    return rng.choice(spans) if spans else None


def _several_lines(text: str, rng: random.Random) -> _Span | None:
    spans = [(start, end) for start, end in _lines(text) if text[start:end].strip()]
    if len(spans) < 2:
        return None
    first = rng.randrange(len(spans) - 1)
    last = min(first + rng.randint(1, MAX_LINES - 1), len(spans) - 1)
    return spans[first][0], spans[last][1]


def _characters(text: str, rng: random.Random) -> _Span:
    start = rng.randrange(len(text))
    return start, rng.randint(start + 1, len(text))


def _lines(text: str) -> list[_Span]:
    """Start and end of every line, its newline left out."""
    spans = []
    start = 0
    for line in text.split("\n"):
        spans.append((start, start + len(line)))
        start += len(line) + 1
    return spans


def _code_lines(text: str) -> list[_Span]:
    fit = []
    in_string = False
    for start, end in _lines(text):
        line = text[start:end].strip()
        quotes = line.count('"""') + line.count("'''")
        if not in_string and not quotes and len(line) >= MIN_LINE_CHARS and not line.startswith("#"):
            fit.append((start, end))
        in_string ^= quotes % 2 == 1
    return fit


def _after_indent(text: str, span: _Span) -> _Span:
    start, end = span
    cut = text[start:end]
    return start + len(cut) - len(cut.lstrip()), end


def _cut(text: str, span: _Span) -> FimExample:
    start, end = span
    return FimExample(text[:start], text[start:end], text[end:])
