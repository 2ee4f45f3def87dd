"""How a file changes, as users read it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import unified_diff
from itertools import takewhile

MAX_PAIRS = 2_000_000  # of equal lines: difflib looks at all of them, again and again
CONTEXT = 3


def file_diff(name: str, old: str, new: str) -> str:
    """A unified diff; empty where nothing changes."""
    before, after = old.splitlines(True), new.splitlines(True)
    make = unified_diff if _num_pairs(before, after) <= MAX_PAIRS else _coarse_diff
    lines = make(before, after, f"a/{name}", f"b/{name}")
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _num_pairs(before: Sequence[str], after: Sequence[str]) -> int:
    counts = Counter(after)
    return sum(count * counts[line] for line, count in Counter(before).items())


def _num_alike(before: Sequence[str], after: Sequence[str]) -> int:
    """How many lines are the same at the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))


def _coarse_diff(before: Sequence[str], after: Sequence[str], old_name: str, new_name: str) -> Iterator[str]:
    """One hunk, from the first line that differs to the last."""
    if before == after:
        return
    start = _num_alike(before, after)
    end = _num_alike(before[start:][::-1], after[start:][::-1])
    first = max(start - CONTEXT, 0)
    old_end, new_end = len(before) - end, len(after) - end
    last = min(end, CONTEXT)
    yield f"--- {old_name}\n"
    yield f"+++ {new_name}\n"
    yield f"@@ -{first + 1},{old_end + last - first} +{first + 1},{new_end + last - first} @@\n"
    yield from (f" {line}" for line in before[first:start])
    yield from (f"-{line}" for line in before[start:old_end])
    yield from (f"+{line}" for line in after[start:new_end])
    yield from (f" {line}" for line in before[old_end : old_end + last])


def count_changes(diff: str) -> tuple[int, int]:
    """Lines added and removed."""
    lines = diff.splitlines()[2:]
    return sum(line.startswith("+") for line in lines), sum(line.startswith("-") for line in lines)
