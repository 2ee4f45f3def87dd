"""The output of a command as a terminal would show it, bounded."""

import codecs
import re
from collections import deque
from io import TextIOWrapper
from pathlib import Path

_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, movements of the cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles and other strings
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)
_BACKSPACE = re.compile(r"[^\x08]\x08")
_LONGEST_LINE = 8192  # longer ones are taken in pieces


def as_shown(line: str) -> str:
    """A line without control sequences. Of a line that was written over, what was written last."""
    line = _CONTROL.sub("", line)
    while "\x08" in line:
        line, found = _BACKSPACE.subn("", line)
        if not found:
            line = line.replace("\x08", "")
    pieces = [piece for piece in line.split("\r") if piece]
    return pieces[-1] if pieces else ""


class OutputKeeper:
    """Takes bytes as they come. `text` has at most about `shown` characters: if there are more, its middle is left out,
    and `file` has all of it, up to `most` bytes."""

    def __init__(self, shown: int, most: int, file: Path) -> None:
        self._head_size, self._tail_size, self._most, self._path = shown * 2 // 3, shown // 3, most, file
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial = ""
        self._all: list[str] = []  # until it is too long: then `_head` and the file have it
        self._head = ""
        self._tail: deque[str] = deque()
        self._kept_tail = self.characters = self.size = 0
        self._lines = 0
        self._writer: TextIOWrapper | None = None

    @property
    def file(self) -> Path | None:
        """Where all of it is; None if `text` is all."""
        return self._path if self._writer else None

    @property
    def is_full(self) -> bool:
        """Whether more came than may be kept."""
        return self.size > self._most

    def feed(self, data: bytes) -> str:
        """-> the text of the lines that are complete now."""
        self.size += len(data)
        text = self._partial + self._decoder.decode(data)
        lines, _, self._partial = text.rpartition("\n")
        if len(self._partial) > _LONGEST_LINE:
            cut, self._partial = as_shown(self._partial), ""
            return self._keep((self._shown_lines(lines) if "\n" in text else "") + cut)
        return self._keep(self._shown_lines(lines)) if "\n" in text else ""

    def finish(self) -> str:
        """-> what came after the last line's end."""
        rest = as_shown(self._partial + self._decoder.decode(b"", final=True))
        self._partial = ""
        self._keep(rest)
        if self._writer:
            self._writer.flush()
        return rest

    @staticmethod
    def _shown_lines(lines: str) -> str:
        return "".join(as_shown(line) + "\n" for line in lines.split("\n"))

    def _keep(self, text: str) -> str:
        self.characters += len(text)
        if self._writer is None:
            self._all.append(text)
            if self.characters > self._head_size + self._tail_size:
                self._spill()
        else:
            self._write(text)
        return text

    def _spill(self) -> None:
        everything = "".join(self._all)
        self._all = []
        self._writer = self._path.open("w", encoding="utf-8", errors="replace")
        end = everything.rfind("\n", 0, self._head_size) + 1
        end = end if end > self._head_size // 2 else self._head_size
        self._head = everything[:end]
        self._writer.write(self._head)
        self._write(everything[end:])

    def _write(self, text: str) -> None:
        assert self._writer is not None
        if not self.is_full:
            self._writer.write(text)
        self._tail.append(text)
        self._lines += text.count("\n")
        self._kept_tail += len(text)
        while self._kept_tail - len(self._tail[0]) >= self._tail_size:
            self._kept_tail -= len(self._tail.popleft())

    def text(self) -> str:
        """What to show of all that came."""
        if self._writer is None:
            return "".join(self._all)
        rest = "".join(self._tail)
        start = max(0, len(rest) - self._tail_size)
        line = rest.find("\n", start) + 1
        tail = rest[line if 0 < line < len(rest) - self._tail_size // 2 else start :]
        missing = self.characters - len(self._head) - len(tail)
        lines = self._lines - tail.count("\n")
        note = f"[{lines} lines, {missing} characters left out; all of it is in {self._path}]"
        return f"{self._head.removesuffix(chr(10))}\n{note}\n{tail}"

    def close(self) -> None:
        if self._writer:
            self._writer.close()
