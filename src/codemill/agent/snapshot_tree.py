"""Trees of a snapshot: an object for each folder, named by its digest, so that what did not change is kept once."""

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from codemill.agent.snapshot_store import Entry, Objects

NOTHING: Mapping[str, Entry] = {}


class Change(NamedTuple):
    """A path that differs between two states; None where there is nothing."""

    path: str
    before: Entry | None
    after: Entry | None

    @property
    def verb(self) -> str:
        """added, removed, changed, or mode where only that changed."""
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        same = self.before.kind == self.after.kind and self.before.digest == self.after.digest
        return "mode" if same or self.before.kind == self.after.kind == "d" else "changed"


def write_tree(objects: Objects, entries: Mapping[str, Entry]) -> bytes:
    """Keep a state; the digest of its root. entries: by path, the folders too, before what is in them."""
    children: dict[str, list[tuple[str, Entry]]] = {"": []}
    for path, entry in entries.items():
        if entry.kind == "d":
            children[path] = []
    for path, entry in entries.items():
        parent, _, name = path.rpartition("/")
        children[parent].append((name, entry))
    digests: dict[str, bytes] = {}
    for folder in sorted(children, reverse=True):  # what is in a folder has a longer name, and so comes first
        digests[folder] = objects.put(_encode(folder, children[folder], digests))
    return digests[""]


def read_tree(objects: Objects, digest: bytes) -> dict[str, Entry]:
    """What is directly in a folder, by name."""
    entries = {}
    for line in objects.get(digest).split(b"\0")[:-1]:
        kind, mode, content, name = line.split(b" ", 3)
        entries[os.fsdecode(name)] = Entry(kind.decode(), int(mode, 8), bytes.fromhex(content.decode()))
    return entries


def walk_tree(objects: Objects, digest: bytes, folder: str = "") -> Iterator[tuple[str, Entry]]:
    """All paths of a state, a folder before what is in it."""
    for name, entry in read_tree(objects, digest).items():
        yield folder + name, entry
        if entry.kind == "d":
            yield from walk_tree(objects, entry.digest, f"{folder}{name}/")


def diff_trees(objects: Objects, before: bytes | None, after: bytes | None, folder: str = "") -> Iterator[Change]:
    """What differs between two folders; a folder counts as changed only if its own mode is another."""
    if before == after:
        return
    olds = read_tree(objects, before) if before is not None else NOTHING
    news = read_tree(objects, after) if after is not None else NOTHING
    for name in sorted(olds.keys() | news.keys()):
        old, new = olds.get(name), news.get(name)
        if old == new:
            continue
        old_folder = old.digest if old is not None and old.kind == "d" else None
        new_folder = new.digest if new is not None and new.kind == "d" else None
        if old is None or new is None or old_folder is None or new_folder is None or old.mode != new.mode:
            yield Change(folder + name, old, new)
        if old_folder is not None or new_folder is not None:
            yield from diff_trees(objects, old_folder, new_folder, f"{folder}{name}/")


def _encode(folder: str, children: list[tuple[str, Entry]], digests: Mapping[str, bytes]) -> bytes:
    lines = []
    for name, entry in sorted(children):
        digest = digests[f"{folder}/{name}" if folder else name] if entry.kind == "d" else entry.digest
        lines.append(b"%s %o %s %s\0" % (entry.kind.encode(), entry.mode, digest.hex().encode(), os.fsencode(name)))
    return b"".join(lines)
