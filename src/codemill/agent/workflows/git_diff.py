"""A diff as Git gives it, read into files and hunks."""

import re
from codecs import escape_decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.errors import CodemillError, UsageError
from codemill.host_git import run_git

if TYPE_CHECKING:
    import subprocess

OPTIONS = (
    *("diff", "--no-color", "--no-ext-diff", "--no-textconv", "--unified=3", "--find-renames", "--ignore-submodules"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--relative"),
)
HUNK = re.compile(r"@@ -\d+(?:,\d+)? \+(\d+)(?:,(\d+))? @@")


@dataclass(frozen=True)
class Hunk:
    """A changed region with three lines around it. start, count: its lines in the new file."""

    start: int
    count: int
    lines: tuple[str, ...]

    def has(self, line: int) -> bool:
        """Whether a line of the new file lies in it; that of a deletion alone is the line before it."""
        return self.start <= line < self.start + max(self.count, 1)

    @property
    def numbered(self) -> str:
        """Its lines, with the numbers that those of the new file have there."""
        number, shown = self.start, []
        for line in self.lines:
            is_new = line[:1] in ("+", " ", "")
            shown.append(f"{number if is_new else '':>6} {line}")
            number += is_new
        return "\n".join(shown)


@dataclass(frozen=True)
class DiffFile:
    """One file of a diff. path: its new one, or the old one if it is deleted."""

    path: str
    hunks: tuple[Hunk, ...] = ()
    is_deleted: bool = False
    is_binary: bool = False


def read_diff(root: Path, wanted: str | None = None, staged: bool = False) -> list[DiffFile]:
    """The diff of a range, of what is staged, or of the working tree since the last commit.

    Raises UsageError for a range that there is not, CodemillError if Git fails.
    """
    if wanted is not None and staged:
        raise UsageError("give a range or --staged, not both")
    what = ["--cached"] if staged else ["--end-of-options", wanted or _base(root)]
    return list(parse_diff(_git(root, [*OPTIONS, *what, "--"])))


def untracked(root: Path) -> list[str]:
    """Files that Git does not know, which no diff shows."""
    listing = _git(root, ["ls-files", "-z", "--others", "--exclude-standard"])
    return [name for name in listing.split("\0") if name]


def parse_diff(text: str) -> Iterator[DiffFile]:
    """Raises CodemillError for what is no diff of Git's."""
    starts = [match.start() for match in re.finditer(r"^diff --git ", text, re.MULTILINE)]
    for start, end in pairwise([*starts, len(text)]):
        yield _file(text[start:end].split("\n"))


def _base(root: Path) -> str:
    """The last commit, or the empty tree where there is none yet."""
    done = _run(root, ["rev-parse", "--verify", "--quiet", "HEAD"])
    return "HEAD" if done.returncode == 0 else _git(root, ["hash-object", "-t", "tree", "/dev/null"]).strip()


def _file(lines: Sequence[str]) -> DiffFile:
    first_hunk = next((number for number, line in enumerate(lines) if line.startswith("@@ ")), len(lines))
    head, names = lines[:first_hunk], {}
    for line in head:
        for mark in ("--- ", "+++ ", "rename to ", "copy to "):
            if line.startswith(mark):
                names[mark.strip()] = _unquote(line.removeprefix(mark).rstrip("\t"))
    is_deleted = any(line.startswith("deleted file ") for line in head)
    path = names.get("---" if is_deleted else "+++", "")[2:] or names.get("rename to") or names.get("copy to")
    is_binary = any(line.startswith(("Binary files ", "GIT binary patch")) for line in head)
    return DiffFile(path or _name_of_head(head[0]), tuple(_hunks(lines[first_hunk:])), is_deleted, is_binary)


def _name_of_head(line: str) -> str:
    """From `diff --git a/X b/X`, where both are the same: a mode changed, or the file is binary or empty."""
    names = line.removeprefix("diff --git ")
    if names.startswith('"'):
        return _unquote(names[: len(names) // 2])[2:]
    return names[: len(names) // 2][2:]


def _hunks(lines: Sequence[str]) -> Iterator[Hunk]:
    starts = [number for number, line in enumerate(lines) if line.startswith("@@ ")]
    for start, end in pairwise([*starts, len(lines)]):
        match = HUNK.match(lines[start])
        if match is None:
            raise CodemillError(f"this is no diff of Git's: {lines[start][:80]}")
        body = [line for line in lines[start + 1 : end] if line[:1] in ("+", "-", " ")]
        yield Hunk(int(match[1]), int(match[2] or 1), tuple(body))


def _unquote(name: str) -> str:
    """Names with special characters stand in quotes, as in C."""
    if not name.startswith('"'):
        return name
    data, _ = escape_decode(name.strip('"').encode())
    return bytes(data).decode("utf-8", "replace")


def _git(root: Path, arguments: Sequence[str]) -> str:
    done = _run(root, arguments)
    if done.returncode:
        message = " ".join(done.stderr.decode("utf-8", "replace").split())
        if "ambiguous argument" in message or "unknown revision" in message or "bad revision" in message:
            raise UsageError(f"git knows no such range: {message[:200]}")
        raise CodemillError(f"git does not give the diff: {message[:300]}")
    return done.stdout.decode("utf-8", "replace")


def _run(root: Path, arguments: Sequence[str]) -> "subprocess.CompletedProcess[bytes]":
    return run_git(root, arguments, by_environment=True)
