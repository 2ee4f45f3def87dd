"""Whether llama.cpp's AMX kernels work, and how to do without them.

GCC 12's `_tile_loadconfig` tells the compiler of the first eight bytes of the tile configuration only, so that the rest
may never be stored: such builds of llama.cpp crash in their first larger matrix product. There is no setting that turns
AMX off, but Linux gives it only to programs that ask for it.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Callable

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_ARCH_PRCTL, _REQUEST_PERMISSION, _NOT_PERMITTED = 158, 0x1023, 1
_TILE_DATA = 18  # the number of AMX's registers among the processor's extended states
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_CALL_NUMBER, _FIRST_ARGUMENT = 0, 16  # offsets in `struct seccomp_data`


def withhold_amx_if_it_crashes(try_it: Callable[[], None]) -> None:
    """Run `try_it` in a forked child; if that dies of a signal, deny AMX to this process."""
    if not _has_amx():
        return
    child = os.fork()
    if child == 0:
        try_it()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        deny_amx()


def is_amx_denied() -> bool:
    """Whether the processor has AMX and this process may not use it."""
    return _has_amx() and ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) != 0


def _has_amx() -> bool:
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return False
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as cpuinfo:
        return "amx_tile" in cpuinfo.read()


def deny_amx() -> None:
    """Make the request for AMX's registers fail in this process from now on."""
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, _CALL_NUMBER),
            (_JUMP_IF_EQUAL, 0, 3, _ARCH_PRCTL),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_JUMP_IF_EQUAL, 0, 1, _REQUEST_PERMISSION),
            (_RETURN, 0, 0, _FAIL | _NOT_PERMITTED),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_program = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER_MODE, filter_program, 0, 0)
    if failed:
        raise OSError(ctypes.get_errno(), "cannot deny AMX to this process")
