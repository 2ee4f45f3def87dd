"""Where the sessions of a project lie, and how one is found again."""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codemill.agent.configuration import state_folder
from codemill.agent.session import VERSION, Session, new_session_id
from codemill.agent.session_file import Record, SessionFile, make_private_folder, read_records
from codemill.agent.snapshots import Snapshots
from codemill.errors import CodemillError, UsageError

KEEP = 200  # sessions of a project that are not pruned
JUST_MADE = 60.0  # seconds in which a session that nothing was asked in yet is let alone
MAX_CANDIDATES = 8  # that an error names
SNAPSHOT_RECORDS = (b'{"type": "snapshot"', b'{"type": "replace"')


@dataclass(frozen=True)
class SessionInfo:
    """What a list of sessions shows. created, changed: Unix time. request: the user's first, on one line.

    num_steps: replies of the model. parent: the id of the session that this one is a copy of.
    """

    id: str
    path: Path
    created: float
    changed: float
    request: str
    num_steps: int
    model: str = ""
    parent: str | None = None


class SessionStore:
    """The sessions of one project, in a folder that only the user can read.

    state_dir: None for $XDG_STATE_HOME/codemill, or else ~/.local/state/codemill.
    """

    def __init__(self, state_dir: Path | None, workspace_root: Path) -> None:
        root = workspace_root.resolve()
        self._state_dir = state_dir or state_folder()
        self.folder = self._state_dir / "projects" / _project_name(root)
        self.snapshots_folder = self.folder / "snapshots"
        self._sessions = self.folder / "sessions"
        self._root = root

    def create(self, **metadata: Any) -> Session:
        """A new session, which this process holds until it is closed. metadata: `model` is shown in lists."""
        metadata = {"workspace": str(self._root), **metadata}
        path = self._new_path()
        session = Session(path, path.stem)
        session.lock()
        session.note("session", id=session.id, version=VERSION, created=time.time(), metadata=metadata)
        return session

    def open(self, info: SessionInfo) -> Session:
        """Go on with a session. Raises CodemillError if another process has it, or its file is corrupt."""
        file = SessionFile(info.path)
        try:
            file.lock()
            return Session.load(info.path, file)
        except BaseException:
            file.close()
            raise

    def fork(self, source: Session | SessionInfo) -> Session:
        """A copy of all that happened so far, to go on with; the original may be in use, and is not touched."""
        records = source.records if isinstance(source, Session) else list(read_records(source.path))
        header: Record = next((record for record in records if record["type"] == "session"), {"metadata": {}})
        metadata = {**header["metadata"], "parent": source.id}
        path = self._new_path()
        new = {"type": "session", "id": path.stem, "version": VERSION, "created": time.time(), "metadata": metadata}
        kept = [record for record in records if record["type"] not in ("session", "opened")]
        file = SessionFile(path)
        try:
            file.lock()
            for record in (new, *kept):
                file.append(record)
            return Session.load(path, file)
        except BaseException:
            file.close()
            path.unlink(missing_ok=True)
            raise

    def list(self) -> list[SessionInfo]:
        """The sessions in which the user asked for something, the one used last first."""
        found = [info for path in self._paths() if (info := _read_info(path)) is not None]
        return sorted(found, key=lambda info: info.changed, reverse=True)

    def latest(self) -> SessionInfo | None:
        """The session that was used last."""
        for path in sorted(self._paths(), key=_changed, reverse=True):
            info = _read_info(path)
            if info is not None:
                return info
        return None

    def find(self, text: str) -> SessionInfo:
        """The session whose id is, or alone begins with, or alone ends with, a text.

        Raises UsageError that names those it may be.
        """
        ids = sorted(path.stem for path in self._paths())
        matching = [text] if text in ids else [name for name in ids if name.startswith(text) or name.endswith(text)]
        if not text or not matching:
            raise UsageError(f"there is no session {text!r} of this folder: {self._candidates()}")
        if len(matching) > 1:
            names = ", ".join(matching[-MAX_CANDIDATES:])
            raise UsageError(f"{len(matching)} sessions match {text!r}: {names}; give more of the id")
        info = _read_info(self._sessions / f"{matching[0]}.jsonl")
        if info is None:
            raise CodemillError(f"session {matching[0]} is empty: nothing was asked in it")
        return info

    def prune(self, keep: int = KEEP) -> int:
        """Delete all but the newest sessions, and those that nothing was asked in; one that is in use stays.

        Returns how many were deleted.
        """
        kept = {info.path for info in self.list()[:keep]}
        old = [path for path in self._paths() if path not in kept and _changed(path) < time.time() - JUST_MADE]
        return sum(_delete(path) for path in old)

    def tidy(self, keep: int = KEEP) -> int:
        """Delete what `prune` does, and the snapshots that nothing else needs; how many sessions that were."""
        num_deleted = self.prune(keep)
        if num_deleted:
            self.snapshots().collect(self.snapshot_ids())
        return num_deleted

    def snapshots(self) -> Snapshots:
        """Where the files of this project are kept, to go back to."""
        return Snapshots(self.snapshots_folder, self._root, self._state_dir)

    def snapshot_ids(self) -> set[str]:
        """The snapshots that sessions can go back to."""
        found: set[str] = set()
        for path in self._paths():
            for line in path.read_bytes().split(b"\n"):
                if line.startswith(SNAPSHOT_RECORDS):
                    with suppress(ValueError):
                        found.update(value for value in json.loads(line).values() if isinstance(value, str))
        return found

    def _paths(self) -> Iterator[Path]:
        return self._sessions.glob("*.jsonl")

    def _new_path(self) -> Path:
        """A file that is made here, so that no other process takes the same name. Raises CodemillError."""
        try:
            make_private_folder(self._sessions)
            while True:
                path = self._sessions / f"{new_session_id()}.jsonl"
                with suppress(FileExistsError):
                    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                    return path
        except OSError as error:
            raise CodemillError(
                f"{self._sessions}: sessions cannot be kept here ({error.strerror}): "
                "make it writable, or name another place in XDG_STATE_HOME"
            ) from error

    def _candidates(self) -> str:
        recent = self.list()[:MAX_CANDIDATES]
        if not recent:
            return "there are none yet"
        return "; ".join(f"{info.id} ({info.request[:40]})" for info in recent)


def _project_name(root: Path) -> str:
    """Two checkouts of one name have other paths, and so other hashes."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", root.name)[:40].strip(".-") or "root"
    return f"{name}-{hashlib.blake2b(os.fsencode(root), digest_size=5).hexdigest()}"


def _read_info(path: Path) -> SessionInfo | None:
    """What a list shows of a session; None if nothing was asked in it, or it is gone.

    Only the beginning is parsed. Strings in a record cannot hold what a line begins with, since their quotes are
    escaped.
    """
    try:
        data, changed = path.read_bytes(), _changed(path)
    except OSError:
        return None
    header: dict[str, Any] = {}
    for line in _lines(data):
        try:
            record = json.loads(line)
            if record["type"] == "session":
                header = record
            if record["type"] == "message" and record["message"]["role"] == "user":
                request = " ".join(str(record["message"]["content"]).split())[:200]
                break
        except (ValueError, KeyError, TypeError):
            continue
    else:
        return None
    metadata = header.get("metadata", {})
    num_steps = data.count(b'\n{"type": "usage"')
    created = header.get("created", changed)
    return SessionInfo(
        path.stem, path, created, changed, request, num_steps, metadata.get("model", ""), metadata.get("parent")
    )


def _lines(data: bytes) -> Iterator[bytes]:
    """Whole lines, one after the other: most of a file is never looked at."""
    begin = 0
    while (end := data.find(b"\n", begin)) >= 0:
        yield data[begin:end]
        begin = end + 1


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _delete(path: Path) -> bool:
    """Delete a session that nobody has."""
    try:
        file = SessionFile(path)
    except CodemillError:
        return False
    try:
        file.lock()
        path.unlink()
    except (CodemillError, OSError):
        return False
    finally:
        file.close()
    return True
