"""Plain files, opened so that nothing that is put in their place meanwhile is read or written instead."""

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path


class NotPlain(OSError):
    """A device, a FIFO, a socket or a folder."""


def read_plain(path: Path, most: int) -> bytes:
    """What is in a file, but at most so many bytes and one. path: absolute, without links; where it became one since,
    or leads through one, OSError is raised, as for everything that cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotPlain(errno.EINVAL, "no plain file")
        _check_place(descriptor, path)
        return file.read(most + 1)


def replace_plain(path: Path, data: bytes) -> None:
    """Write beside a file, then put it in its place, with the mode that it had. path: as of `read_plain`."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check_place(folder, path.parent)
        _replace(folder, path.name, data)
    finally:
        os.close(folder)


def _replace(folder: int, name: str, data: bytes) -> None:
    before = _stat(folder, name)
    temporary = f".{name[:50]}.{secrets.token_hex(4)}.{os.getpid()}.codemill"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
            os.fchmod(descriptor, (0o666 & ~_umask()) if before is None else before.st_mode & 0o7777)
            _keep_owner(descriptor, before or os.fstat(folder))
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


def _stat(folder: int, name: str) -> os.stat_result | None:
    with suppress(FileNotFoundError):
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    return None


def _check_place(descriptor: int, path: Path) -> None:
    with suppress(FileNotFoundError):  # no /proc
        if os.readlink(f"/proc/self/fd/{descriptor}") != str(path):
            raise OSError(errno.ELOOP, "it is not where it was")


def _keep_owner(descriptor: int, owner: os.stat_result) -> None:
    """Where root works in somebody's folder, the files stay that somebody's."""
    if os.geteuid() == 0:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
        os.fchmod(descriptor, mode)  # a change of the owner takes bits away


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
