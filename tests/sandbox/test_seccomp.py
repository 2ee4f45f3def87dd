"""The filter as data: its numbers are those of the kernel's headers, and its jumps lead where they should."""

import re
import struct
from pathlib import Path

import pytest

from codemill.sandbox import linux, seccomp

HEADERS = (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h"))


@pytest.mark.parametrize("column", [0, 1], ids=["x86_64", "aarch64"])
def test_numbers_are_those_of_the_headers(column: int) -> None:
    if not HEADERS[column].exists():
        pytest.skip(f"{HEADERS[column]} is not here")
    text = HEADERS[column].read_text()
    headers = {name: int(n) for name, n in re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", text, re.MULTILINE)}
    ours = {**seccomp._REFUSED, **seccomp._ABSENT, "clone": seccomp._CLONE, "socket": seccomp._SOCKET}
    for name, numbers in ours.items():
        assert headers.get(name) == numbers[column], name


def run_filter(program: bytes, arch: int, number: int, argument: int = 0) -> int:
    """What the kernel would return: an interpreter of the five instructions that the filter uses."""
    data = {0: number, 4: arch, 16: argument}
    instructions = list(struct.iter_unpack("=HBBI", program))
    i = accumulator = 0
    while True:
        code, if_true, if_false, value = instructions[i]
        i += 1
        if code == 0x20:
            accumulator = data[value]
        elif code == 0x06:
            return value
        else:
            holds = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[code]
            i += if_true if holds else if_false


@pytest.mark.parametrize(
    ("number", "argument", "expected"),
    [
        (1, 0, 0x7FFF0000),  # write
        (101, 0, 0x7FC00000),  # ptrace
        (435, 0, 0x00050000 | 38),  # clone3: absent
        (56, 0x11, 0x7FFF0000),  # clone as fork does
        (56, 0x10000011, 0x7FC00000),  # with a user namespace
        (41, 1, 0x7FFF0000),  # socket: AF_UNIX
        (41, 2, 0x7FC00000),  # AF_INET
        (41, 16, 0x00050000 | 97),  # AF_NETLINK: no such family
        (0x40000001, 0, 0x00050000 | 38),  # the x32 table
    ],
)
def test_the_filter_s_answers(number: int, argument: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    program = seccomp.filter_program()
    assert run_filter(program, 0xC000003E, number, argument) == expected
    assert run_filter(program, 0x40000003, number, argument) == 0x80000000  # 32-bit calls kill


def test_a_machine_without_numbers_has_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    assert linux.calls() is None
    with pytest.raises(OSError, match="machine"):
        seccomp.filter_program()
