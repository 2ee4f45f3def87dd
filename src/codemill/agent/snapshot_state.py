"""What a snapshot knows: the files that are in it, and what it left out."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from codemill.agent.snapshot_store import Entry, Objects
from codemill.agent.snapshot_tree import Change, diff_trees, read_tree, write_tree
from codemill.errors import UsageError


@dataclass(frozen=True)
class State:
    """A snapshot. unseen: paths that were left out, folders with / at the end. also: ignored ones that were not.
    watched: how some of those looked that were left out."""

    id: str
    tree: bytes
    unseen: frozenset[str]
    also: frozenset[str]
    watched: Mapping[str, str]

    def knows(self, path: str) -> bool:
        """Whether a path that is not in the snapshot was not there when it was taken."""
        if path in self.unseen or path + "/" in self.unseen:
            return False
        return path in self.also or not any(folder + "/" in self.unseen for folder in folders_of(path))


def folders_of(path: str) -> Iterator[str]:
    """The folders that a path lies in, the outermost first."""
    end = path.find("/")
    while end >= 0:
        yield path[:end]
        end = path.find("/", end + 1)


def save_state(
    objects: Objects,
    label: str,
    entries: Mapping[str, Entry],
    unseen: Collection[str],
    also: Collection[str],
    watched: Mapping[str, str],
) -> State:
    """Keep a state as a snapshot."""
    tree = write_tree(objects, entries)
    lists = {"unseen": _put_paths(objects, unseen), "also": _put_paths(objects, also)}
    body = json.dumps({"tree": tree.hex(), **lists, "watched": dict(sorted(watched.items()))}).encode()
    name = objects.name(objects.put(body), label)
    return State(name, tree, frozenset(unseen), frozenset(also), dict(watched))


def load_state(objects: Objects, name: str) -> State:
    """Raises UsageError if there is no such snapshot, CodemillError if it is damaged."""
    if not objects.has_snapshot(name):
        raise UsageError(f"there is no snapshot {name}: it was deleted, or is of another folder")
    body = json.loads(objects.get(bytes.fromhex(name)))
    unseen, also = (_get_paths(objects, body[key]) for key in ("unseen", "also"))
    return State(name, bytes.fromhex(body["tree"]), unseen, also, body.get("watched", {}))


def differences(objects: Objects, old: State, new: State, is_certain: bool = True) -> list[Change]:
    """What changed from one state to another.

    A path that the new state did not look at is none of it; nor, if is_certain, one that the old did not look at. But
    what was there before the agent first changed an ignored file is known.
    """
    touched = objects.touched()
    changes = {change.path: change for change in diff_trees(objects, old.tree, new.tree)}
    for path in touched.keys() - changes.keys():
        if _find(objects, new.tree, path) is None:  # and so not in the old one either
            changes[path] = Change(path, None, None)
    found = []
    for path, before, after in changes.values():
        is_known_before = before is not None or old.knows(path) or path in touched
        is_known_after = after is not None or new.knows(path) or path in touched
        before = before or (None if old.knows(path) else touched.get(path))
        after = after or (None if new.knows(path) else touched.get(path))
        if before != after and is_known_after and (is_known_before or not is_certain):
            found.append(Change(path, before, after))
    return found


def changed_unkept(present: State, target: State) -> list[str]:
    """Paths that no snapshot keeps, and which are not what they were."""
    both = present.watched.keys() & target.watched.keys()
    return sorted(path for path in both if present.watched[path] != target.watched[path])


def mark(objects: Objects, name: str, needed: set[bytes]) -> None:
    """Add all contents that a snapshot needs."""
    digest = bytes.fromhex(name)
    body = json.loads(objects.get(digest))
    needed.update((digest, bytes.fromhex(body["unseen"]), bytes.fromhex(body["also"])))
    _mark_tree(objects, bytes.fromhex(body["tree"]), needed)


def _mark_tree(objects: Objects, tree: bytes, needed: set[bytes]) -> None:
    if tree in needed:
        return
    needed.add(tree)
    for entry in read_tree(objects, tree).values():
        if entry.kind == "d":
            _mark_tree(objects, entry.digest, needed)
        else:
            needed.add(entry.digest)


def _find(objects: Objects, tree: bytes, path: str) -> Entry | None:
    *folders, name = path.split("/")
    for folder in folders:
        entry = read_tree(objects, tree).get(folder)
        if entry is None or entry.kind != "d":
            return None
        tree = entry.digest
    return read_tree(objects, tree).get(name)


def _put_paths(objects: Objects, paths: Collection[str]) -> str:
    return objects.put(b"\0".join(os.fsencode(path) for path in sorted(paths))).hex()


def _get_paths(objects: Objects, digest: str) -> frozenset[str]:
    return frozenset(os.fsdecode(path) for path in objects.get(bytes.fromhex(digest)).split(b"\0") if path)
