"""How many threads a computation on the CPU should have."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_SLOW_CORE = 0.5  # a core of less than this share of the best one's capacity holds the others up


@dataclass(frozen=True)
class ThreadCount:
    """A number of threads, and in words why."""

    count: int
    reason: str


def default_threads(
    root: Path = Path("/"), allowed: set[int] | None = None, environment: Mapping[str, str] = os.environ
) -> ThreadCount:
    """One thread a physical core that this process may use, and no more than the CPU time its cgroup gives it.

    Siblings of simultaneous multithreading share a core's arithmetic and count once; the small cores of hybrid
    processors are left out where there are others, since every phase waits for the last thread. OMP_NUM_THREADS and
    MKL_NUM_THREADS win. root, allowed: another file system and other CPUs than this process's, for tests.
    """
    for name in _VARIABLES:
        value = environment.get(name, "").partition(",")[0].strip()
        if value.isdecimal() and int(value) > 0:
            return ThreadCount(int(value), name)
    cpus = _allowed_cpus() if allowed is None else allowed
    large = _without_small_cores(root, cpus)
    num_cores = len({_siblings(root, cpu) & cpus for cpu in large})
    quota = min(_quotas(root), default=None)
    if quota is not None and ceil(quota) < num_cores:
        return ThreadCount(max(1, ceil(quota)), f"the cgroup's quota of {quota:g} CPUs")
    left_out = f", {len(cpus) - len(large)} small ones left out" if large != cpus else ""
    return ThreadCount(num_cores, f"{num_cores} physical cores of {len(cpus)} CPUs{left_out}")


def _allowed_cpus() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _siblings(root: Path, cpu: int) -> frozenset[int]:
    """The CPUs of the same core, itself among them."""
    listed = _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return frozenset(parse_cpu_list(listed)) | {cpu}


def _without_small_cores(root: Path, cpus: set[int]) -> set[int]:
    small = cpus & parse_cpu_list(_read(root / "sys/devices/cpu_atom/cpus"))  # Intel
    capacity = {cpu: _read(root / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity") for cpu in cpus}  # Arm
    known = {cpu: int(value) for cpu, value in capacity.items() if value.isdecimal()}
    best = max(known.values(), default=0)
    small |= {cpu for cpu, value in known.items() if value < _SLOW_CORE * best}
    return cpus - small or cpus


def _quotas(root: Path) -> Iterator[float]:
    """The CPUs' worth of time that each cgroup around this process grants."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" if not controllers else root / "sys/fs/cgroup/cpu"
        folder = top / name.lstrip("/")
        for each in (folder, *folder.parents):
            yield from _quota(each)
            if each == top:
                break


def _quota(folder: Path) -> Iterator[float]:
    # Version 2 says "200000 100000" or "max 100000"; version 1 has a file for each number, and -1 for no limit.
    words = _read(folder / "cpu.max").split() or [
        _read(folder / "cpu.cfs_quota_us"),
        _read(folder / "cpu.cfs_period_us"),
    ]
    if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
        yield int(words[0]) / int(words[1])


def parse_cpu_list(text: str) -> set[int]:
    """The numbers in the kernel's notation, such as 0-3,8."""
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
