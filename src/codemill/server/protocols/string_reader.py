"""Reads one text out of JSON that is still arriving."""

import json
import re

from codemill.chat.tokenizer import replace_surrogates

# What may still be the beginning of an escape, or of a pair of them for one character.
UNFINISHED = re.compile(r"\\(?:u[0-9a-fA-F]{0,3}|u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?)?$")
END = re.compile(r'(?:[^"\\]|\\.)*"', re.DOTALL)


class StringReader:
    """The value of an object's first member, as far as it has come, if that is a text and has this name."""

    def __init__(self, name: str) -> None:
        self._start = re.compile(rf'\s*\{{\s*{re.escape(json.dumps(name))}\s*:\s*"')
        self._held = ""
        self._is_inside = False
        self._is_done = False

    def feed(self, text: str) -> str:
        """Take a piece of JSON -> what more of the value it makes certain."""
        if self._is_done:
            return ""
        self._held += text
        if not self._is_inside:
            found = self._start.match(self._held)
            if found is None:
                return ""
            self._held, self._is_inside = self._held[found.end() :], True
        return self._read()

    def _read(self) -> str:
        end = END.match(self._held)
        if end is not None:
            self._is_done = True
            return _unescaped(end[0][:-1])
        unfinished = UNFINISHED.search(_without_pairs(self._held))
        keep = len(unfinished[0]) if unfinished else 0
        piece, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return _unescaped(piece)


def _without_pairs(text: str) -> str:
    r"""The same length, where no escaped backslash can be taken for the beginning of an escape."""
    return text.replace("\\\\", "__")


def _unescaped(text: str) -> str:
    return replace_surrogates(str(json.loads(f'"{text}"', strict=False)))
