"""The file system that a sandboxed program sees: built of mounts, so that nothing else of the host is there at all.

/usr /bin /lib ...   the host's, read-only
/etc                 made up, and the few of the host's entries that toolchains need
PREFIX               the Python interpreter and its packages, read-only, wherever they lie
/dev                 null, zero, full, random, urandom; shm
/proc                of the sandbox's own process namespace
/sandbox             a size-capped tmpfs, new for every run: work/ (the current directory), home/, tmp/, shm/
/tmp                 a link to /sandbox/tmp; a PREFIX below the host's /tmp is mounted there again for every run
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from codemill.sandbox import linux

BASE = "/sandbox"
WORK, HOME, TMP, SHM = (f"{BASE}/{name}" for name in ("work", "home", "tmp", "shm"))
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Configuration without secrets that dynamic linking and the toolchains of `languages` read.
_ETC = (
    *("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ssl/openssl.cnf", "mime.types", "magic"),
    *("java-11-openjdk", "java-17-openjdk", "java-21-openjdk", "mono", "R", "php", "racket", "lua", "perl", "scala"),
    *("ldc2.conf", "ldc2.conf.d", "dmd.conf", "fonts"),
)
_DEVICES = ("null", "zero", "full", "random", "urandom")
_OLD = "/old"
_READ_ONLY = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV


def enter(readable: Sequence[str], uid: int, gid: int) -> Mapping[str, str]:
    """Leave the host's file system for a new root -> what `mount_scratch` has to mount for each run.

    The caller has its own mount and process namespace. readable: absolute paths of the host that stay where they are,
    read-only. Raises OSError where the kernel or a surrounding container refuses.
    """
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("sandbox", "/tmp", "tmpfs", linux.MS_NOSUID, "size=1m,mode=0755")
    os.mkdir(f"/tmp{_OLD}")
    linux.pivot_root("/tmp", f"/tmp{_OLD}")
    os.chdir("/")
    for name in _SYSTEM:
        _take_over(f"/{name}")
    below_tmp: dict[str, str] = {}
    for path in sorted(readable):
        if path.startswith("/tmp/"):
            below_tmp[TMP + path.removeprefix("/tmp")] = f"/below-tmp/{len(below_tmp)}"
            _bind(path, below_tmp[TMP + path.removeprefix("/tmp")])
        elif not os.path.exists(path):  # a path below one that is already there needs nothing
            _bind(path)
    _make_etc(uid, gid)
    _make_devices()
    os.mkdir("/proc")
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV)
    os.mkdir(BASE)
    os.symlink(TMP, "/tmp")
    linux.unmount(_OLD)
    os.rmdir(_OLD)
    linux.set_mount_attributes("/", linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID, recursive=False)
    return below_tmp


def _take_over(path: str) -> None:
    """A system folder as the host has it: most are links into /usr today."""
    old = _OLD + path
    if os.path.islink(old):
        os.symlink(os.readlink(old), path)
    elif os.path.isdir(old):
        _bind(path)


def _bind(path: str, target: str | None = None, attributes: int = _READ_ONLY) -> None:
    """Show a path of the host in the new root, at the same place or at `target`."""
    target = target or path
    old = os.path.realpath(_OLD + path) if not os.path.islink(_OLD + path) else _resolve(path)
    if os.path.isdir(old):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    linux.mount(old, target, None, linux.MS_BIND | linux.MS_REC)
    if attributes:
        linux.set_mount_attributes(target, attributes)


def _resolve(path: str) -> str:
    """Where a link of the host leads: its absolute targets count from the host's root."""
    target = os.path.join(os.path.dirname(path), os.readlink(_OLD + path))
    return _OLD + os.path.normpath(target)


def _make_etc(uid: int, gid: int) -> None:
    os.mkdir("/etc")
    texts = {
        "passwd": f"root:x:0:0::/nonexistent:/bin/false\nsandbox:x:{uid}:{gid}::{HOME}:/bin/sh\n",
        "group": f"root:x:0:\nsandbox:x:{gid}:\n",
        "hosts": "127.0.0.1 localhost\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    }
    for name, text in texts.items():
        Path("/etc", name).write_text(text)
    for name in _ETC:
        if os.path.exists(f"{_OLD}/etc/{name}"):
            _bind(f"/etc/{name}")


def _make_devices() -> None:
    os.mkdir("/dev")
    for name in _DEVICES:
        _bind(f"/dev/{name}", attributes=0)  # a device on a mount without devices cannot be opened
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")
    os.symlink("/proc/self/fd", "/dev/fd")
    os.symlink(SHM, "/dev/shm")


def mount_scratch(size: int, uid: int, gid: int, below_tmp: Mapping[str, str]) -> None:
    """A new, empty /sandbox of at most `size` bytes that belongs to `uid`. below_tmp: see `enter`."""
    options = f"size={size},nr_inodes=20000,mode=0755"
    linux.mount("scratch", BASE, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
    for path in (WORK, HOME, TMP, SHM):
        os.mkdir(path, 0o700)
        os.chown(path, uid, gid)
    for target, source in below_tmp.items():
        os.makedirs(target)
        linux.mount(source, target, None, linux.MS_BIND | linux.MS_REC)


def unmount_scratch() -> None:
    """Give all of /sandbox back."""
    linux.unmount(BASE)


def scratch_used() -> int:
    """Bytes that files in /sandbox take."""
    found = os.statvfs(BASE)
    return (found.f_blocks - found.f_bfree) * found.f_frsize
