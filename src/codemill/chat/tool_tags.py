"""The tags of a tool call, and a cursor that looks ahead in text of which more may still come.

Whatever the cursor is asked, it answers `MORE` as long as the answer could depend on text that has not arrived. That
alone makes streaming equal to parsing the whole, for every split.
"""

import re
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

MAX_SPACE = 256  # characters of white space that may stand between two tags
MAX_HEADER = 512  # characters of a function's or parameter's opening tag


class Tag(Enum):
    """The tags; and what else may come next: other text, the end of the text, or text that has not arrived yet."""

    OPEN_CALL = "<tool_call>"
    CLOSE_CALL = "</tool_call>"
    OPEN_FUNCTION = "<function="
    CLOSE_FUNCTION = "</function>"
    OPEN_PARAMETER = "<parameter="
    CLOSE_PARAMETER = "</parameter>"
    TEXT = "text"
    END = "end"
    MORE = "more"


TAGS = tuple(tag for tag in Tag if tag.value.startswith("<"))
CLOSERS = (Tag.CLOSE_CALL, Tag.CLOSE_FUNCTION, Tag.CLOSE_PARAMETER)
SPACE = re.compile(r"\s*")
HEADER_END = re.compile(r"[>\n]")
WORD_END = re.compile(r"(?<!\\)[\w)\]}]$")
NAME = re.compile(r"[\w$@./:-]+(?: [\w$@./:-]+)*")


@dataclass(frozen=True)
class Next:
    """What comes after white space: its kind and where it starts and ends. A tag cut off by the end is END."""

    kind: Tag
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The rest of an opening tag after `=`: `NAME>`, or the malformed `NAME=VALUE>` and `NAME=VALUE</parameter>`."""

    text: str
    end: int

    @property
    def name(self) -> str:
        return self._inner.partition("=")[0].strip().strip("\"'")

    @property
    def value(self) -> str:
        return self._inner.partition("=")[2]

    @property
    def is_closed(self) -> bool:
        return self.text.endswith("</parameter")

    @cached_property
    def _inner(self) -> str:
        return self.text.strip().removesuffix("</parameter")


class Cursor:
    """A position in the text so far. `final` says that no more will come."""

    def __init__(self) -> None:
        self.text = ""
        self.pos = 0
        self.final = False

    def feed(self, delta: str) -> None:
        self.text = self.text[self.pos :] + delta
        self.pos = 0

    def put_back(self, text: str) -> None:
        """Stand before `text` again, which was taken."""
        self.text, self.pos = text + self.text[self.pos :], 0

    def take(self, end: int) -> str:
        """Move to `end`, return the text passed over."""
        taken, self.pos = self.text[self.pos : end], end
        return taken

    def tag_at(self, at: int) -> Tag:
        """The tag that starts at `at`, where the text has a `<`."""
        if tag := next((tag for tag in TAGS if self.text.startswith(tag.value, at)), None):
            return tag
        return Tag.TEXT if self.final or not self.is_cut_tag(at) else Tag.MORE

    def is_cut_tag(self, at: int) -> bool:
        """Whether the rest of the text is the beginning of a tag."""
        rest = self.text[at : at + len(Tag.CLOSE_PARAMETER.value)]
        return len(rest) == len(self.text) - at and any(
            tag.value.startswith(rest) and tag.value != rest for tag in TAGS
        )

    def peek(self, at: int) -> Next:
        """What comes at `at`, after at most MAX_SPACE characters of white space."""
        match = SPACE.match(self.text, at, at + MAX_SPACE + 1)
        start = match.end() if match else at
        if start - at > MAX_SPACE:
            return Next(Tag.TEXT, at, at)
        if start == len(self.text) or self.is_cut_tag(start):
            return Next(Tag.END if self.final else Tag.MORE, start, len(self.text))
        kind = self.tag_at(start) if self.text[start] == "<" else Tag.TEXT
        return Next(kind, start, start + len(kind.value) if kind in TAGS else start)

    def header(self, at: int) -> Header | Tag:
        """The header of a function or parameter that starts at `at`; TEXT if it is none, END if it is cut off."""
        match = HEADER_END.search(self.text, at, at + MAX_HEADER)
        if not match:
            if len(self.text) - at >= MAX_HEADER:
                return Tag.TEXT
            return Tag.END if self.final else Tag.MORE
        header = Header(self.text[at : match.start()], match.end() if match[0] == ">" else match.start())
        return header if NAME.fullmatch(header.name) else Tag.TEXT


class LinePosition:
    """Remembers of the current line whether it is blank so far, its open `code`, and its last characters."""

    def __init__(self) -> None:
        self.is_blank = True
        self.in_code = False
        self._tail = ""

    @property
    def is_after_word(self) -> bool:
        """Whether a word or bracket ends here; the `n` of an escaped line break is no word."""
        return bool(WORD_END.search(self._tail))

    def pass_over(self, text: str) -> None:
        line = text[text.rfind("\n") + 1 :]
        if len(line) < len(text):
            self.is_blank, self.in_code = True, False
        self.is_blank = self.is_blank and not line.strip(" \t")
        self.in_code ^= line.count("`") % 2 == 1
        self._tail = (self._tail + text[-2:])[-2:]
