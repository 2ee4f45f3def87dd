"""What the processes of a sandbox use, read from its own /proc, where process 1 is the sandbox's server."""

import os
from collections.abc import Iterable

_TICKS = os.sysconf("SC_CLK_TCK")


def processes() -> list[int]:
    """Every process but the server, zombies included."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of these processes and of the children they have waited for."""
    return sum(map(_ticks, pids)) / _TICKS


def memory(pids: Iterable[int]) -> int:
    """Bytes of their own pages and page tables. A page that several share counts for each: see `exact_memory`."""
    return sum(_sum_of_kilobytes(_status(pid), ("RssAnon:", "RssShmem:", "VmPTE:")) for pid in pids)


def exact_memory(pids: Iterable[int]) -> int:
    """The same, a page that several share counted once where the kernel says so. Slower than `memory`."""
    return sum(map(_exact_memory, pids))


def _exact_memory(pid: int) -> int:
    shared_out = _sum_of_kilobytes(_read(f"/proc/{pid}/smaps_rollup"), ("Pss_Anon:", "Pss_Shmem:"))
    return shared_out + _sum_of_kilobytes(_status(pid), ("VmPTE:",)) if shared_out else memory([pid])


def _status(pid: int) -> str:
    """The status of the process, or of a living thread if the first one has ended: then only that tells of memory."""
    text = _read(f"/proc/{pid}/status")
    if "RssAnon:" in text:
        return text
    others = (_read(f"/proc/{pid}/task/{thread}/status") for thread in _threads(pid))
    return next((other for other in others if "RssAnon:" in other), text)


def written(pids: Iterable[int | str]) -> int:
    """Bytes that these processes and the children they have waited for wrote to disks, "self" for this one."""
    return sum(_written(_read(f"/proc/{pid}/io")) for pid in pids)


def _written(text: str) -> int:
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("write_bytes:"))


def name(pid: int) -> str:
    """What it calls itself; nothing for a zombie."""
    text = _read(f"/proc/{pid}/stat")
    return "" if text.rpartition(")")[2].split()[:1] == ["Z"] else text.partition("(")[2].rpartition(")")[0]


def is_nested(pid: int) -> bool:
    """Whether it is in a process namespace within this one."""
    text = _read(f"/proc/{pid}/status")
    return any(line.startswith("NSpid:") and len(line.split()) > 2 for line in text.splitlines())


def waited_seconds(pids: Iterable[int]) -> float:
    """The longest that any thread of these processes was ready to run and had no CPU; 0 if the kernel does not say."""
    return max((_waited(pid, thread) for pid in pids for thread in _threads(pid)), default=0.0)


def _ticks(pid: int) -> int:
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


def _sum_of_kilobytes(text: str, names: tuple[str, ...]) -> int:
    return sum(1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith(names))


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _waited(pid: int, thread: str) -> float:
    fields = _read(f"/proc/{pid}/task/{thread}/schedstat").split()
    return int(fields[1]) / 1e9 if len(fields) > 1 else 0.0


def _read(path: str) -> str:
    """The file's text; nothing if the process has gone meanwhile, or may not be looked at."""
    try:
        with open(path, errors="replace") as file:  # a process names itself, in any bytes
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
