"""The few Linux calls that Python's `os` does not offer, through the C library. Each raises OSError with errno set."""

import ctypes
import os
import platform
from dataclasses import dataclass

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_NEWTIME = 0x00000080
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_OPEN_TREE_CLONE, _MOVE_FROM_EMPTY_PATH = 1, 4
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True)
class Calls:
    """System call numbers that have no wrapper in older C libraries, and the audit name of the architecture."""

    audit_arch: int
    seccomp: int
    pivot_root: int
    capset: int
    mount_setattr: int = 442
    open_tree: int = 428
    move_mount: int = 429


_CALLS = {
    "x86_64": Calls(0xC000003E, seccomp=317, pivot_root=155, capset=126),
    "aarch64": Calls(0xC00000B7, seccomp=277, pivot_root=41, capset=91),
}


def calls() -> Calls | None:
    """The numbers for this machine, or None where nobody has looked them up."""
    return _CALLS.get(platform.machine())


def _require_calls() -> Calls:
    found = calls()
    if found is None:
        raise OSError(f"no system call numbers for {platform.machine()}")
    return found


def _check(result: int, what: str) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def unshare(flags: int) -> None:
    """Give this process new namespaces (`CLONE_NEW*`)."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    """mount(2)."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _check(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def unmount(target: str) -> None:
    """Detach a mount, whoever still uses it."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def pivot_root(new_root: str, old_root: str) -> None:
    """pivot_root(2)."""
    number = _require_calls().pivot_root
    _check(_libc.syscall(number, os.fsencode(new_root), os.fsencode(old_root)), "pivot_root")


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


def set_mount_attributes(target: str, attributes: int, recursive: bool = True) -> None:
    """Set `MOUNT_ATTR_*` on a mount, and on all mounts below it. Needs Linux 5.12."""
    wanted = _MountAttributes(attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    number, size = _require_calls().mount_setattr, ctypes.sizeof(wanted)
    result = _libc.syscall(number, _AT_FDCWD, os.fsencode(target), flags, ctypes.byref(wanted), size)
    _check(result, f"mount_setattr {target}")


def clone_tree(path: str) -> int:
    """A copy of what is mounted at a path and below it, attached nowhere -> its descriptor. Needs Linux 5.2."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    number = _require_calls().open_tree
    return _check(_libc.syscall(number, _AT_FDCWD, os.fsencode(path), flags), f"open_tree {path}")


def attach_tree(tree: int, target: str) -> None:
    """Mount what `clone_tree` gave at a path, and close it."""
    number = _require_calls().move_mount
    try:
        result = _libc.syscall(number, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_FROM_EMPTY_PATH)
        _check(result, f"move_mount {target}")
    finally:
        os.close(tree)


def prctl(option: int, value: int) -> None:
    """prctl(2) for options of one number."""
    arguments = [ctypes.c_ulong(number) for number in (value, 0, 0, 0)]
    _check(_libc.prctl(option, *arguments), f"prctl {option}")


def drop_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets for good."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.syscall(_require_calls().capset, header, (ctypes.c_uint32 * 6)()), "capset")


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install_filter(program: bytes, listen: bool = True) -> int:
    """Install a seccomp program (8 bytes an instruction) for this process and its children -> the listener's
    descriptor, to which calls that the program answers by `SECCOMP_RET_USER_NOTIF` are reported; 0 without one."""
    buffer = ctypes.create_string_buffer(program, len(program))
    wanted = _Program(len(program) // 8, ctypes.addressof(buffer))
    number, flags = _require_calls().seccomp, SECCOMP_FILTER_FLAG_NEW_LISTENER if listen else 0
    return _check(_libc.syscall(number, SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(wanted)), "seccomp")


def drop_bounding_set() -> None:
    """Take away all capabilities that a program could gain by being executed. Needs them still."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for capability in range(last + 1):
        prctl(PR_CAPBSET_DROP, capability)
