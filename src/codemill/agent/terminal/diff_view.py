"""A diff as users look at it: line numbers, colours, and long ones folded."""

import re
from collections.abc import Iterator

from codemill.agent.terminal.ink import Ink
from codemill.agent.terminal.safe_text import cut, visible_text

HUNK = re.compile(r"^@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@")
FOLDED = 24  # lines


def render_diff(diff: str, columns: int, ink: Ink, max_lines: int | None = FOLDED, cut_lines: bool = True) -> str:
    """The changed lines with their numbers, and those around them. max_lines: None for all.

    cut_lines: at the window's edge; else the terminal wraps them, so that nothing is hidden.
    """
    lines = list(_lines(visible_text(diff), ink, columns if cut_lines else None))
    if max_lines is not None and len(lines) > max_lines:
        hidden = len(lines) - max_lines + 1  # at least two: the note takes the place of a line
        lines = [*lines[: max_lines - 1], ink(f"      … {hidden} more lines", "dim")]
    return "\n".join(lines)


def num_lines(diff: str) -> int:
    """Lines that `render_diff` gives for the whole of it."""
    return sum(1 for _ in _lines(diff, Ink(plain=True), None))


def _lines(diff: str, ink: Ink, columns: int | None) -> Iterator[str]:
    old = new = 0
    is_first = True
    for line in diff.removesuffix("\n").split("\n"):
        found = HUNK.match(line)
        if found:
            old, new = int(found[1]), int(found[2])
            if not is_first:
                yield ink("      …", "dim")
            is_first = False
        elif line.startswith(("--- ", "+++ ")) and is_first:
            continue
        elif line.startswith("+"):
            yield _line(new, line, ("green",), ink, columns)
            new += 1
        elif line.startswith("-"):
            yield _line(old, line, ("red",), ink, columns)
            old += 1
        elif line.startswith("\\"):
            yield ink(f"       {line[2:]}", "dim")
        else:
            yield _line(new, line, ("dim",), ink, columns)
            old, new = old + 1, new + 1


def _line(number: int, line: str, styles: tuple[str, ...], ink: Ink, columns: int | None) -> str:
    shown = f"{number or '':>5} {line[:1] or ' '} {line[1:]}".rstrip()
    return ink(shown if columns is None else cut(shown, columns), *styles)
