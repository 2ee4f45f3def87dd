"""Text from models, files and commands, made fit for a terminal: nothing in it can move the cursor or pretend."""

import re
from functools import cache

TAB = 4  # columns
# CSI, OSC and the other strings that ST or BEL ends, charset choices, and single letters; an unfinished one too.
SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# What orders text from right to left: it can make code look like other code.
ORDER = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def safe_text(text: str) -> str:
    """The text without control sequences; other control characters are shown as `\\x07`, tabs as spaces.

    A carriage return begins a line anew, as it does in the output of commands.
    """
    text = SEQUENCE.sub("", text.replace("\r\n", "\n"))
    if "\r" in text:
        text = "\n".join(_after_return(line) for line in text.split("\n"))
    text = ORDER.sub(_escape, CONTROL.sub(_escape, text)).expandtabs(TAB)
    return text.encode("utf-8", "replace").decode()


def visible_text(text: str) -> str:
    """The text with every control character shown as `\\x1b`, for what the user approves: nothing of it is left out."""
    text = ORDER.sub(_escape, CONTROL.sub(_escape, text)).expandtabs(TAB)
    return text.encode("utf-8", "replace").decode()


def safe_line(text: str) -> str:
    """The text on one line."""
    return " ".join(safe_text(text).split())


def visible_line(text: str) -> str:
    """All of the text on one line."""
    return " ".join(visible_text(text).split())


def width(text: str) -> int:
    """Columns that safe text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def cut(text: str, columns: int) -> str:
    """The beginning of a line, with `…` where something is left out."""
    if width(text) <= columns:
        return text
    kept = 0
    for number, character in enumerate(text):
        kept += _columns(character)
        if kept > columns - 1:
            return f"{text[:number]}…" if columns > 0 else ""
    return text


def wrap(text: str, columns: int) -> list[str]:
    """Lines of at most so many columns, broken at spaces where there are some."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines += _wrap_line(line, max(2, columns))
    return lines


def _wrap_line(line: str, columns: int) -> list[str]:
    lines, begin, used, space = [], 0, 0, -1
    for number, character in enumerate(line):
        used += _columns(character)
        while used > columns and number > begin:
            end = space if space > begin else number
            lines.append(line[begin:end].rstrip(" "))
            begin = end
            used = width(line[begin : number + 1])
        if character == " ":
            space = number + 1
    return [*lines, line[begin:]]


@cache
def _columns(character: str) -> int:
    from wcwidth import wcwidth

    return max(0, wcwidth(character))


def _after_return(line: str) -> str:
    """What a line shows that was written over: the last part that is not empty."""
    return next((part for part in reversed(line.split("\r")) if part), "")


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
