"""The file system that commands in a user's workspace see: the host's, read-only, and what `RootPlan` says of it.

/                    the host's, read-only, without set-user-ID programs and devices
the workspace        writable, at its own path; Git's hooks and settings in it are not
HOME                 an overlay: the host's files, and what is written to them goes to the scratch
/tmp /var/tmp /run   empty at first, writable, the session's own; so is /dev/shm
/dev                 null, zero, full, random, urandom, tty; pseudo-terminals of its own
/proc                of the session's own process namespace, read-only
secrets              covered by files and folders that nobody may read

The scratch is one tmpfs of fixed size.
"""

import contextlib
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

from codemill.sandbox import linux
from codemill.sandbox.workspace_plan import RootPlan, is_within

_SAFE = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
_READ_ONLY = linux.MOUNT_ATTR_RDONLY | _SAFE
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_COVERS = {"/tmp": 0o1777, "/var/tmp": 0o1777, "/run": 0o755}
_CACHES = (".cache", ".npm", ".cargo/registry", ".local/share", "go/pkg")  # where a home cannot be an overlay
_PID_MAX_IS_OWN = (6, 14)  # the first kernel in which each process namespace has its own
_RESERVED_PIDS = 300  # which are given out once only
_RESOLVER = "/etc/resolv.conf"


def enter(plan: RootPlan, processes: int) -> None:
    """Leave the host's file system for the new root. The caller is process 1 of its own mount and process namespace.

    processes: the most at a time, where the kernel can bound them for a namespace. Raises OSError where the kernel or a
    surrounding container refuses.
    """
    _copy_root()
    trees = _take_trees(plan)
    devices = {name: linux.clone_tree(f"/dev/{name}") for name in _DEVICES}
    _make_read_only()
    scratch = _Scratch(plan.scratch)
    if os.path.isdir(plan.home):
        _overlay(plan.home, scratch)
        if is_within(plan.home, _COVERS):
            trees[plan.home] = (linux.clone_tree(plan.home), False)
    for path, mode in _COVERS.items():
        if os.path.isdir(path) and not os.path.islink(path):
            scratch.attach(scratch.folder(path.replace("/", "_"), mode), path)
    _make_devices(devices, scratch)
    _mount_proc(processes)
    _attach(trees)
    _pin(plan)
    _hide(plan, scratch)


def _copy_root() -> None:
    """A copy of all mounts, which the host's later mounts do not reach, becomes the root."""
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("/", "/tmp", None, linux.MS_BIND | linux.MS_REC)
    os.chdir("/tmp")
    linux.pivot_root(".", ".")
    linux.unmount(".")
    os.chdir("/")


def mount_points() -> list[str]:
    """Every mount of this namespace."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return [re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), line.split()[4]) for line in lines]


def _take_trees(plan: RootPlan) -> dict[str, tuple[int, bool]]:
    """What has to be mounted again later: path -> a copy as it is on the host, and whether it becomes read-only."""
    read_only = [path for path in mount_points() if path != plan.home and is_within(path, [plan.home])]
    read_only = [path for path in read_only if not is_within(path, plan.writable)]
    read_only += [path for path in plan.readable if os.path.exists(path)]
    resolver = os.path.realpath(_RESOLVER)
    if plan.network and resolver != _RESOLVER and os.path.exists(resolver):
        read_only.append(resolver)
    trees = {path: (linux.clone_tree(path), True) for path in read_only}
    return trees | {path: (linux.clone_tree(path), False) for path in plan.writable}


def _make_read_only() -> None:
    linux.set_mount_attributes("/", linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID)
    for path in mount_points():
        with contextlib.suppress(OSError):  # one that another mount covers
            linux.set_mount_attributes(path, linux.MOUNT_ATTR_NODEV, recursive=False)


class _Scratch:
    """The session's tmpfs. It is mounted on /run, and reached through a descriptor once that is covered."""

    def __init__(self, size: int) -> None:
        linux.mount("scratch", "/run", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, f"size={size},mode=0755")
        self.base = f"/proc/self/fd/{os.open('/run', os.O_PATH | os.O_CLOEXEC)}"
        self.unreadable_folder = self.folder("unreadable-folder", 0)
        self.unreadable_file, self.empty_file = self._file("unreadable", 0), self._file("empty", 0o444)

    def folder(self, name: str, mode: int) -> str:
        path = f"{self.base}/{name}"
        os.mkdir(path)
        os.chmod(path, mode)
        return path

    def _file(self, name: str, mode: int) -> str:
        path = f"{self.base}/{name}"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode))
        return path

    def attach(self, source: str, target: str, attributes: int = 0) -> None:
        linux.attach_tree(linux.clone_tree(source), target)
        if attributes:
            linux.set_mount_attributes(target, attributes)


def _overlay(home: str, scratch: _Scratch) -> None:
    """What is written to the home directory is kept for the session. Where the kernel has no overlay of this folder,
    only what lies in caches, which then are empty."""
    upper, work = scratch.folder("home", os.stat(home).st_mode & 0o777), scratch.folder("work", 0o700)
    folders = (("lowerdir", home), ("upperdir", upper), ("workdir", work))
    options = ",".join(f"{name}={_escape(path)}" for name, path in folders)
    try:
        linux.mount("home", home, "overlay", linux.MS_NOSUID | linux.MS_NODEV, f"{options},userxattr")
    except OSError:
        for name in _CACHES:
            if os.path.isdir(f"{home}/{name}"):
                scratch.attach(scratch.folder(name.replace("/", "_"), 0o700), f"{home}/{name}")


def _escape(path: str) -> str:
    """A path as overlay's options take it."""
    return re.sub(r"([\\\\,:])", r"\\\1", path)


def _make_devices(devices: Mapping[str, int], scratch: _Scratch) -> None:
    linux.mount("dev", "/dev", "tmpfs", linux.MS_NOSUID | linux.MS_NOEXEC, "size=64k,mode=0755")
    for name, tree in devices.items():
        os.close(os.open(f"/dev/{name}", os.O_CREAT | os.O_WRONLY, 0o644))
        linux.attach_tree(tree, f"/dev/{name}")
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")
    os.symlink("/proc/self/fd", "/dev/fd")
    os.mkdir("/dev/shm")
    scratch.attach(scratch.folder("shm", 0o1777), "/dev/shm")
    os.mkdir("/dev/pts")
    with contextlib.suppress(OSError):  # programs that open pseudo-terminals then cannot
        linux.mount("devpts", "/dev/pts", "devpts", linux.MS_NOSUID | linux.MS_NOEXEC, "newinstance,ptmxmode=0666")
        os.symlink("pts/ptmx", "/dev/ptmx")
    linux.set_mount_attributes("/dev", linux.MOUNT_ATTR_RDONLY, recursive=False)


def _mount_proc(processes: int) -> None:
    """/proc of this namespace. Read-only, since a file of root's in it may be changed by root without capabilities."""
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    release = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
    if release >= _PID_MAX_IS_OWN:
        with contextlib.suppress(OSError):
            Path("/proc/sys/kernel/pid_max").write_text(str(_RESERVED_PIDS + processes + 64))
    linux.set_mount_attributes("/proc", _READ_ONLY, recursive=False)


def mount_nested_proc() -> None:
    """/proc for a process namespace within this one. The caller has a mount namespace of its own."""
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC | linux.MS_RDONLY
    linux.mount("proc", "/proc", "proc", flags)


def _attach(trees: Mapping[str, tuple[int, bool]]) -> None:
    for path, (tree, read_only) in sorted(trees.items()):
        if not os.path.lexists(path):
            _make_mount_point(path, tree)
        linux.attach_tree(tree, path)
        linux.set_mount_attributes(path, _READ_ONLY if read_only else _SAFE)


def _make_mount_point(path: str, tree: int) -> None:
    """A folder that was covered is empty now, and writable."""
    if os.path.isdir(f"/proc/self/fd/{tree}"):
        os.makedirs(path)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def _pin(plan: RootPlan) -> None:
    """A mount point can be neither renamed nor removed, so what is mounted within cannot be gone round."""
    for path, target in plan.links:
        if not os.path.lexists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(target, path)
    for path in sorted((*plan.pinned, *plan.read_only)):
        linux.attach_tree(linux.clone_tree(path), path)
        if path in plan.read_only:
            linux.set_mount_attributes(path, _READ_ONLY)


def _hide(plan: RootPlan, scratch: _Scratch) -> None:
    for path in plan.unreadable:
        if not os.path.lexists(path) and is_within(path, [plan.home]) and os.path.isdir(plan.home):
            with contextlib.suppress(OSError):
                os.makedirs(path)  # in the overlay: the host may make it later
        if os.path.isdir(path):
            scratch.attach(scratch.unreadable_folder, path, _READ_ONLY)
        elif os.path.exists(path):
            scratch.attach(scratch.unreadable_file, path, _READ_ONLY)
    for path in plan.emptied:
        if os.path.exists(path):
            scratch.attach(scratch.empty_file, path, _READ_ONLY)
