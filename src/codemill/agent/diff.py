"""How a file changes, as users read it."""

from difflib import unified_diff


def file_diff(name: str, old: str, new: str) -> str:
    """A unified diff; empty where nothing changes."""
    lines = unified_diff(old.splitlines(True), new.splitlines(True), f"a/{name}", f"b/{name}")
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def count_changes(diff: str) -> tuple[int, int]:
    """Lines added and removed."""
    lines = diff.splitlines()[2:]
    return sum(line.startswith("+") for line in lines), sum(line.startswith("-") for line in lines)
