"""Splits Markdown that is still being written into blocks that can be rendered for good."""

import re

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
LIST_ITEM = re.compile(r"^ {0,3}(?:[-*+]|\d{1,9}[.)])(?:\s|$)")
HEADING = re.compile(r"^ {0,3}#{1,6}(?:\s|$)")


class BlockSplitter:
    """Takes Markdown in pieces and gives the blocks that are finished: paragraphs, headings, lists, tables, code.

    A list goes on across an empty line if an item or an indented line follows, so its end is known only then.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line = ""  # the unfinished one
        self._fence = ""
        self._is_list = False

    @property
    def rest(self) -> str:
        """What no finished block has yet."""
        return "\n".join([*self._lines, self._line])

    def feed(self, text: str) -> list[str]:
        """More text -> blocks that are finished by it."""
        *whole, self._line = (self._line + text).split("\n")
        blocks: list[str] = []
        for line in whole:
            blocks += self._take(line)
        return blocks

    def finish(self) -> list[str]:
        """The text is over -> what remains."""
        blocks = self._take(self._line) if self._line else []
        self._line = ""
        return [*blocks, *self._close()]

    def _take(self, line: str) -> list[str]:
        if self._fence:
            return self._take_code(line)
        found = FENCE.match(line)
        if found and not self._is_list:
            blocks = self._close()
            self._begin_fence(found[1], line)
            return blocks
        if not line.strip():
            return self._take_empty(line)
        if HEADING.match(line):
            return [*self._close(), line]
        return self._take_text(line, found[1] if found else "")

    def _take_code(self, line: str) -> list[str]:
        self._lines.append(line)
        mark = line.strip()
        if mark.startswith(self._fence) and not mark.strip(self._fence[0]):
            self._fence = ""
            return [] if self._is_list else self._close()
        return []

    def _begin_fence(self, fence: str, line: str) -> None:
        self._fence = fence
        self._lines.append(line)

    def _take_empty(self, line: str) -> list[str]:
        if self._is_list:
            self._lines.append("")
            return []
        return self._close()

    def _take_text(self, line: str, fence: str) -> list[str]:
        is_item = bool(LIST_ITEM.match(line))
        after_gap = bool(self._lines) and not self._lines[-1]
        # After a gap, or at code, only what is indented still belongs to the list.
        ends_list = self._is_list and not is_item and not line.startswith(("  ", "\t")) and (after_gap or bool(fence))
        blocks = self._close() if ends_list else []
        if not self._lines:
            self._is_list = is_item
        if fence:
            self._begin_fence(fence, line)
        else:
            self._lines.append(line)
        return blocks

    def _close(self) -> list[str]:
        block = "\n".join(self._lines).strip("\n")
        self._lines, self._is_list, self._fence = [], False, ""
        return [block] if block.strip() else []
