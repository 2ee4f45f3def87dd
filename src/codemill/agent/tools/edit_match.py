"""Finds the text that an edit means, and says what is nearest where there is none."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher, unified_diff

from codemill.agent.tool import ToolError

LIKE = 0.5  # of lines' likeness, below which nothing is near
MAX_CHARACTERS = 8000  # of a text that is compared with a whole file
MAX_EXACT = 1000  # of one whose order counts when it is compared
SECONDS = 2.0  # of comparing


@dataclass(frozen=True)
class Edit:
    """The whole new text, and how often something was replaced. reindented: only the indentation was not as given."""

    text: str
    count: int
    reindented: bool = False


def replace_text(text: str, old: str, new: str, replace_all: bool, name: str) -> Edit:
    """Replace `old` by `new`. Raises ToolError that shows what is nearest, or where else `old` is.

    Where `old` occurs once but for the indentation, or for blanks at the ends of lines, that place is meant, and `new`
    is moved in or out by the same amount.
    """
    if old == new:
        raise ToolError("old_string and new_string are the same: nothing would change")
    count = text.count(old)
    if count == 1 or (count and replace_all):
        return Edit(text.replace(old, new), count)
    if count:
        lines = ", ".join(map(str, _line_numbers(text, old)))
        raise ToolError(
            f"old_string occurs {count} times in {name}, at lines {lines}: add lines around it until it is unique, "
            "or set replace_all"
        )
    places = list(_loose_places(text, old))
    if len(places) == 1:
        return Edit(_replace_loosely(text, old, new, places[0]), 1, reindented=True)
    if places:
        lines = ", ".join(str(start + 1) for start in places)
        raise ToolError(
            f"old_string does not occur in {name} as it is written. Without its indentation it occurs at lines "
            f"{lines}: copy the one that you mean, with its exact indentation"
        )
    raise ToolError(f"old_string does not occur in {name}. {nearest(text, old)}")


def nearest(text: str, old: str) -> str:
    """The region of the text that is most like `old`, as a diff; a hint where none is."""
    wanted, lines = old.splitlines(), text.splitlines()
    if not lines or not wanted or len(old) > MAX_CHARACTERS:
        return "Read the file again."
    start, likeness = _most_alike(lines, wanted)
    if likeness < LIKE:
        return "Nothing in it is like that: read the file again."
    region = lines[start : start + len(wanted)]
    diff = unified_diff(wanted, region, "old_string", f"lines {start + 1} to {start + len(region)}", lineterm="", n=2)
    return "The nearest is this (- is what you wrote, + what is there):\n" + "\n".join(diff)


def _line_numbers(text: str, old: str, most: int = 10) -> Iterator[int]:
    at = text.find(old)
    while at >= 0 and most:
        yield text.count("\n", 0, at) + 1
        at, most = text.find(old, at + 1), most - 1


def _loose_places(text: str, old: str) -> Iterator[int]:
    """Lines (from 0) where `old` begins, but for blanks around lines and an indentation that is off by one amount."""
    wanted, lines = old.strip("\n").split("\n"), text.split("\n")
    stripped = [line.strip() for line in lines]
    target = [line.strip() for line in wanted]
    if not any(target):
        return
    for start in range(len(lines) - len(target) + 1):
        end = start + len(target)
        if stripped[start:end] == target and _shift(wanted, lines[start:end]) is not None:
            yield start


def _shift(wanted: list[str], found: list[str]) -> tuple[str, str] | None:
    """(what is before each line of `wanted`, what is before it in `found`), where the difference is the same in all."""
    pairs = {(_indent(ours), _indent(theirs)) for ours, theirs in zip(wanted, found, strict=True) if ours.strip()}
    shifts = {_removed_end(ours, theirs) for ours, theirs in pairs}
    return shifts.pop() if len(shifts) == 1 else None


def _removed_end(ours: str, theirs: str) -> tuple[str, str]:
    """The two without the longest end that they share."""
    size = 0
    while size < min(len(ours), len(theirs)) and ours[-1 - size] == theirs[-1 - size]:
        size += 1
    return ours[: len(ours) - size], theirs[: len(theirs) - size]


def _replace_loosely(text: str, old: str, new: str, start: int) -> str:
    wanted, lines = old.strip("\n").split("\n"), text.split("\n")
    shift = _shift(wanted, lines[start : start + len(wanted)])
    assert shift is not None
    replacement = [_moved(line, *shift) for line in new.strip("\n").split("\n")] if new.strip() else []
    return "\n".join([*lines[:start], *replacement, *lines[start + len(wanted) :]])


def _moved(line: str, ours: str, theirs: str) -> str:
    return theirs + line.removeprefix(ours) if line.strip() else line


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _most_alike(lines: list[str], wanted: list[str]) -> tuple[int, float]:
    """Where a region as long as `wanted` begins that is most like it, and how much, from 0 to 1."""
    matcher = SequenceMatcher(autojunk=False)
    text = "\n".join(line.strip() for line in wanted)
    matcher.set_seq2(text)
    best, where = 0.0, 0
    deadline = time.monotonic() + SECONDS
    for start in range(max(1, len(lines) - len(wanted) + 1)):
        if time.monotonic() > deadline:
            break
        region = "\n".join(line.strip() for line in lines[start : start + len(wanted)])
        matcher.set_seq1(region[:MAX_CHARACTERS])
        if (
            matcher.real_quick_ratio() > best
            and (ratio := _likeness(matcher, max(len(region), len(text)), best)) > best
        ):
            best, where = ratio, start
    return where, best


def _likeness(matcher: "SequenceMatcher[str]", size: int, best: float) -> float:
    """The ratio of difflib, which may take the cube of the size; by the letters alone where that would be long, or
    where even that is no more than the best."""
    quick = matcher.quick_ratio()
    return matcher.ratio() if quick > best and size <= MAX_EXACT else quick
