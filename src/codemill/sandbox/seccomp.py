"""The system calls that a sandboxed program may not make, as a seccomp filter, and the reports of those it tried.

The filter forbids rather than allows: programs in eighteen languages must run, and what namespaces, a read-only root
and a uid without privileges already contain needs no second lock. See seccomp(2) and the kernel's seccomp_filter.rst.
"""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codemill.sandbox import linux

_NAMESPACES = (
    linux.CLONE_NEWNS
    | linux.CLONE_NEWCGROUP
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUSER
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWTIME
)
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
INTERNET = (_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK)  # families that programs with servers and clients use

# Name -> number on (x86_64, aarch64); None where the call does not exist. A program that makes one is told EPERM.
# mount and umount2 are not among them: the server, which the filter holds too, needs them for a run's own file system,
# and to a program, which has no capabilities, the kernel refuses them by itself.
_REFUSED: Mapping[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "vmsplice": (278, 75),  # pins pages that then belong to no process
    "pidfd_getfd": (438, 438),
    # mounts and namespaces
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # the kernel itself
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "syslog": (103, 116),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "iopl": (172, None),
    "ioperm": (173, None),
    # keys, and memory that outlives a process
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
}
# Run-times try these and do without: they are told that the kernel has no such call, and nothing is reported.
# memfd_create is among them because its memory is bounded by no limit of a process.
_ABSENT: Mapping[str, tuple[int | None, int | None]] = {
    "clone3": (435, 435),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "perf_event_open": (298, 241),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
}
_CLONE, _SOCKET, _PRLIMIT = (56, 220), (41, 198), (302, 261)

_ALLOW, _KILL, _NOTIFY, _ERRNO = 0x7FFF0000, 0x80000000, 0x7FC00000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little-endian
_FOREIGN_TABLE = 0x40000000  # x32 calls: the same numbers with this bit


@dataclass(frozen=True)
class _Instruction:
    code: int
    value: int
    target: str = ""  # label to jump to where the comparison holds; otherwise the next instruction


def filter_program(families: Sequence[int] = (_AF_UNIX,), report: bool = True) -> bytes:
    """The filter for this machine. families: of sockets that may be made. A refused call waits for the listener, which
    answers EPERM; without `report` nobody listens, and the kernel answers so itself."""
    calls = linux.calls()
    if calls is None:
        raise OSError("no system call numbers for this machine")
    column = 0 if calls.audit_arch == 0xC000003E else 1
    refused = [numbers[column] for numbers in _REFUSED.values()]
    absent = [numbers[column] for numbers in _ABSENT.values()]
    body = [
        _Instruction(_LOAD, _NUMBER),
        _Instruction(_JUMP_AT_LEAST, _FOREIGN_TABLE, "absent"),
        _Instruction(_JUMP_EQUAL, _CLONE[column], "clone"),
        _Instruction(_JUMP_EQUAL, _SOCKET[column], "socket"),
        _Instruction(_JUMP_EQUAL, _PRLIMIT[column], "prlimit"),
        *[_Instruction(_JUMP_EQUAL, number, "refuse") for number in refused if number is not None],
        *[_Instruction(_JUMP_EQUAL, number, "absent") for number in absent if number is not None],
        _Instruction(_RETURN, _ALLOW),
    ]
    blocks = {
        "": [_Instruction(_LOAD, _ARCH), _Instruction(_JUMP_EQUAL, calls.audit_arch, "body")],
        "kill": [_Instruction(_RETURN, _KILL)],
        "body": body,
        "clone": [
            _Instruction(_LOAD, _FIRST_ARGUMENT),
            _Instruction(_JUMP_ANY_BIT, _NAMESPACES, "refuse"),
            _Instruction(_RETURN, _ALLOW),
        ],
        "prlimit": [  # its own limits only, not the server's, whose user it may be
            _Instruction(_LOAD, _FIRST_ARGUMENT),
            _Instruction(_JUMP_EQUAL, 0, "allow"),
            _Instruction(_JUMP_AT_LEAST, 0, "refuse"),
        ],
        "socket": [
            _Instruction(_LOAD, _FIRST_ARGUMENT),
            *[_Instruction(_JUMP_EQUAL, family, "allow") for family in families],
            _Instruction(_JUMP_EQUAL, _AF_NETLINK, "no family"),
        ],
        # "socket" runs on into "refuse"
        "refuse": [_Instruction(_RETURN, _NOTIFY if report else _ERRNO | errno.EPERM)],
        "absent": [_Instruction(_RETURN, _ERRNO | errno.ENOSYS)],
        "no family": [_Instruction(_RETURN, _ERRNO | errno.EAFNOSUPPORT)],
        "allow": [_Instruction(_RETURN, _ALLOW)],
    }
    return _assemble(blocks)


def _assemble(blocks: Mapping[str, list[_Instruction]]) -> bytes:
    """struct sock_filter for each instruction, labels resolved to the number of instructions to skip."""
    starts: dict[str, int] = {}
    position = 0
    for label, block in blocks.items():
        starts[label] = position
        position += len(block)
    instructions = [instruction for block in blocks.values() for instruction in block]
    return b"".join(
        struct.pack("=HBBI", each.code, starts[each.target] - i - 1 if each.target else 0, 0, each.value)
        for i, each in enumerate(instructions)
    )


# Reports of refused calls: struct seccomp_notif and seccomp_notif_resp, and their ioctls.
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=Qqii")
_RECEIVE = 0xC0502100
_SEND = 0xC0182101


def refuse_reported_call(listener: int) -> str | None:
    """Answer one waiting call with EPERM -> the call's name; None if there is none (its process is gone)."""
    buffer = ctypes.create_string_buffer(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
        identity, _, _, number, _, _, first_argument, *_ = _NOTIFICATION.unpack(buffer.raw)
        fcntl.ioctl(listener, _SEND, _RESPONSE.pack(identity, 0, -errno.EPERM, 0))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
            return None
        raise
    return _name(number, first_argument)


def _name(number: int, first_argument: int) -> str:
    column = 0 if os.uname().machine == "x86_64" else 1
    if number == _SOCKET[column]:
        return f"socket(family {first_argument & 0xFFFFFFFF})"
    if number == _PRLIMIT[column]:
        return "prlimit64"
    if number == _CLONE[column]:
        return "clone(new namespace)"
    return next((name for name, numbers in _REFUSED.items() if numbers[column] == number), f"system call {number}")
