"""Thread counts for machines that are described by a tree of files."""

import os
from pathlib import Path

import pytest

from codemill.kernels.thread_count import default_threads, parse_cpu_list

CPU = "sys/devices/system/cpu/cpu{}"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def pairs(num_cpus: int) -> dict[str, str]:
    """CPU n and n + half are siblings."""
    half = num_cpus // 2
    return {CPU.format(n) + "/topology/thread_siblings_list": f"{n % half},{n % half + half}" for n in range(num_cpus)}


def count(root: Path, cpus: set[int], **environment: str) -> int:
    return default_threads(root, cpus, environment).count


def test_siblings_count_once(tmp_path):
    root = write(tmp_path, pairs(8))
    assert count(root, set(range(8))) == 4
    assert count(root, {0, 4}) == 1
    assert count(root, {0, 1, 2}) == 3
    assert count(root, {1, 4, 5}) == 2


def test_unknown_machines_get_a_thread_a_cpu(tmp_path):
    assert count(tmp_path, {0, 3, 7}) == 3


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_variables_win(tmp_path, variable):
    root = write(tmp_path, pairs(8))
    assert count(root, set(range(8)), **{variable: "7"}) == 7
    assert count(root, set(range(8)), **{variable: "6,2"}) == 6
    assert count(root, set(range(8)), **{variable: "many"}) == 4


def test_intel_efficiency_cores_are_left_out(tmp_path):
    files = {CPU.format(n) + "/topology/thread_siblings_list": "0-1" if n < 2 else str(n) for n in range(6)}
    root = write(tmp_path, {**files, "sys/devices/cpu_atom/cpus": "2-5", "sys/devices/cpu_core/cpus": "0-1"})
    chosen = default_threads(root, set(range(6)), {})
    assert (chosen.count, chosen.reason) == (1, "1 physical cores of 6 CPUs, 4 small ones left out")
    assert count(root, {2, 3, 4}) == 3  # there are no others


def test_arm_little_cores_are_left_out(tmp_path):
    capacities = [300, 300, 300, 300, 900, 900, 1024]
    root = write(tmp_path, {CPU.format(n) + "/cpu_capacity": str(each) for n, each in enumerate(capacities)})
    assert count(root, set(range(7))) == 3


@pytest.mark.parametrize(("limit", "expected"), [("250000 100000", 3), ("50000 100000", 1), ("max 100000", 8)])
def test_quota_of_cgroup_2_holds_for_its_children(tmp_path, limit, expected):
    files = {"proc/self/cgroup": "0::/pod/box", "sys/fs/cgroup/pod/cpu.max": limit}
    root = write(tmp_path, {**files, "sys/fs/cgroup/pod/box/cpu.max": "max 100000"})
    assert count(root, set(range(8))) == expected


@pytest.mark.parametrize(("quota", "expected"), [("400000", 4), ("-1", 8)])
def test_quota_of_cgroup_1(tmp_path, quota, expected):
    folder = "sys/fs/cgroup/cpu/box/"
    files = {folder + "cpu.cfs_quota_us": quota, folder + "cpu.cfs_period_us": "100000"}
    root = write(tmp_path, {"proc/self/cgroup": "4:memory:/m\n1:cpuacct,cpu:/box\n0::/", **files})
    assert count(root, set(range(8))) == expected


def test_quota_above_the_cores_changes_nothing(tmp_path):
    root = write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "1600000 100000"})
    assert count(root, {0, 1}) == 2


def test_parse_cpu_list():
    assert parse_cpu_list("0-3,8,10-11") == {0, 1, 2, 3, 8, 10, 11}
    assert parse_cpu_list("") == set()


def test_this_machine_has_a_count():
    assert default_threads(environment={}).count in range(1, (os.cpu_count() or 1) + 1)
