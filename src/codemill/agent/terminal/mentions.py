"""`@path` in a message: the file's content is added to it, marked as data."""

import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from codemill.agent.tool import ToolError
from codemill.agent.workspace import Workspace

MENTION = re.compile(r"(?:^|(?<=\s))@(?:\"([^\"\n]+)\"|(\S+))")
DATA = re.compile(r"\s+\[(?:file|folder) [^\n\]]*, data [0-9a-f]{8}\]\s")  # what `_as_data` begins with
MAX_CHARACTERS = 100_000  # of one file: about 30,000 tokens
MAX_ENTRIES = 500
END_MARKS = ".,;:!?)'\""


@dataclass(frozen=True)
class Expanded:
    """text: the message with what was mentioned. names: what was added; problems: a line for what was not."""

    text: str
    names: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def expand_mentions(text: str, workspace: Workspace) -> Expanded:
    """Add what a message mentions. A word after @ that is no file stays a word, with a problem if it looks like one."""
    parts, names, problems = [text], [], []
    for name in dict.fromkeys(_mentioned(text, workspace)):
        try:
            parts.append(_content(name, workspace))
            names.append(name)
        except ToolError as error:
            problems.append(f"@{name} is not added: {error}")
    return Expanded("\n\n".join(parts), tuple(names), tuple(problems))


def _mentioned(text: str, workspace: Workspace) -> list[str]:
    names = []
    for found in MENTION.finditer(text):
        name = found[1] or found[2]
        if found[1] is None and not _exists(name, workspace):
            name = name.rstrip(END_MARKS)
        if name and (_exists(name, workspace) or "/" in name or "." in name):
            names.append(name)
    return names


def _exists(name: str, workspace: Workspace) -> bool:
    try:
        return workspace.resolve(name).exists()
    except (ToolError, OSError):
        return False


def _content(name: str, workspace: Workspace) -> str:
    path = workspace.resolve(name)
    if path.is_dir():
        return _as_data("folder", name, _listing(path))
    if workspace.is_secret(path):
        raise ToolError("it may hold keys or passwords")
    text = workspace.read(path).text
    if len(text) > MAX_CHARACTERS:
        raise ToolError(f"it has {len(text):,} characters, more than {MAX_CHARACTERS:,}: ask for a part of it")
    return _as_data("file", workspace.name(path), text)


def _listing(path: Path) -> str:
    entries = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in path.iterdir())
    more = [f"[{len(entries) - MAX_ENTRIES} more]"] if len(entries) > MAX_ENTRIES else []
    return "\n".join([*entries[:MAX_ENTRIES], *more])


def _as_data(kind: str, name: str, text: str) -> str:
    """Between marks that the text itself cannot contain, since they have its hash."""
    mark = blake2b(text.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    end = "" if text.endswith("\n") or not text else "\n"
    return f"[{kind} {name}, data {mark}]\n{text}{end}[end of data {mark}]"
