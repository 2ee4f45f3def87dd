"""The file of a session: one JSON object a line, only ever appended to."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from codemill.agent.secrets import mask_all
from codemill.errors import CodemillError

Record = dict[str, Any]


class SessionFile:
    """Appends records, each whole or not at all. Nobody but the user can read the file."""

    def __init__(self, path: Path) -> None:
        """Raises CodemillError if the file can be neither opened nor made."""
        self.path = path
        try:
            make_private_folder(path.parent)
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise CodemillError(f"{path}: the session cannot be written: {error.strerror}") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record, with secrets masked. Raises CodemillError if the disk is full; the file is then as it was."""
        data = encode(mask_all(record))
        size = os.fstat(self._descriptor).st_size
        try:
            self._write(data)
        except BaseException as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, size)  # half a line would spoil the one after it
            if isinstance(error, OSError):
                raise CodemillError(f"{self.path}: the session cannot be written: {error.strerror}") from error
            raise

    def lock(self) -> None:
        """Keep other processes from writing to it, until this one closes it or ends, however it ends.

        Raises CodemillError naming the process that has it.
        """
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):  # others are of file systems without locks
                raise CodemillError(
                    f"session {self.path.stem} is in use by {_holder(self.path)}: end that, or work on a copy with "
                    "--fork"
                ) from None
        self.repair()
        self.append({"type": "opened", "time": round(time.time(), 3), "pid": os.getpid(), "host": socket.gethostname()})

    def repair(self) -> None:
        """Cut off what a process that died had begun to write."""
        drop_torn_line(self._descriptor)

    def close(self) -> None:
        """Close the file, and let others have it."""
        os.close(self._descriptor)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]


def encode(record: Mapping[str, Any]) -> bytes:
    """A record's line. Halves of characters, which UTF-8 cannot hold, are written as JSON's \\u escapes."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        return line.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


def read_records(path: Path) -> Iterator[Record]:
    """All whole lines of a session's file. Raises CodemillError naming the file and line that are corrupt."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CodemillError(f"{path}: the session cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline was not written whole
        try:
            record = json.loads(line)
            record["type"]
        except (ValueError, KeyError, TypeError) as error:
            raise CodemillError(f"{path}, line {number}: not a record of a session") from error
        yield record


def drop_torn_line(descriptor: int) -> None:
    """Cut a file off after its last newline."""
    size = os.fstat(descriptor).st_size
    end = size
    while end > 0:
        begin = max(0, end - 65536)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end != size:
        os.ftruncate(descriptor, end)


def make_private_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for the user alone."""
    for place in (*reversed(folder.parents), folder):
        if not place.exists():
            place.mkdir(mode=0o700, exist_ok=True)


def _holder(path: Path) -> str:
    """The process that opened the session last."""
    with suppress(OSError, ValueError):
        line = next(line for line in reversed(path.read_bytes().split(b"\n")) if line.startswith(b'{"type": "opened"'))
        record = json.loads(line)
        since = time.strftime("%H:%M", time.localtime(record["time"]))
        host = "" if record["host"] == socket.gethostname() else f" on {record['host']}"
        return f"process {record['pid']}{host}, since {since}"
    return "another process"
