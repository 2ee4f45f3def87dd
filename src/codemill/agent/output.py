"""Texts and names made fit for a model."""

import re

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def plain_name(name: str) -> str:
    """The name of a file in one line: control characters, which could pass for lines of ours, as `\\n` and `\\x1b`."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), name)


def cut_middle(text: str, max_characters: int, rest: str = "") -> str:
    """The text, or its beginning and end with a note of what is left out. rest: where all of it can be read."""
    if len(text) <= max_characters:
        return text
    first, last = _first_lines(text, max_characters * 2 // 3), _last_lines(text, max_characters // 3)
    missing = text[len(first) : len(text) - len(last)]
    where = f"; all of it is in {rest}" if rest else ""
    note = f"[{missing.count(chr(10)) + 1} lines, {len(missing)} characters left out{where}]"
    return f"{first.rstrip(chr(10))}\n{note}\n{last}"


def _first_lines(text: str, size: int) -> str:
    """Whole lines, unless the first one is longer."""
    end = text.rfind("\n", 0, size) + 1
    return text[: end if end > size // 2 else size]


def _last_lines(text: str, size: int) -> str:
    start = text.find("\n", len(text) - size) + 1
    return text[start if 0 < start < len(text) - size // 2 else len(text) - size :]
