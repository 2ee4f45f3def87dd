"""Seconds that a snapshot of a repository takes, the first time and after that, and an undo.

    python benchmarks/agent_snapshots.py [--files 20000] [--rounds 5] [--output benchmarks/results/NAME.json]

The repository is made for it: Python files of 0 to 9 kB in 20 folders of many folders. Medians of the rounds. Beside
it, `git add --all` and `git write-tree` into a Git directory of its own, which is how other agents keep states, and
which keeps neither modes nor empty folders.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from codemill.agent.snapshots import Snapshots

PER_FOLDER = 50
SETTLED = 2.1  # seconds after which a file that was read is not read again


def make_repository(root: Path, num_files: int) -> None:
    numbers = random.Random(0)
    for index in range(num_files // PER_FOLDER):
        folder = root / f"package{index % 20}" / f"module{index}"
        folder.mkdir(parents=True)
        for number in range(PER_FOLDER):
            lines = "x = 1\n" * numbers.randrange(20, 1500)
            (folder / f"m{number}.py").write_text(f"# {index} {number}\n{lines}")
    subprocess.run(["git", "init", "-q", root], check=True)


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def git_state(root: Path, shadow: Path) -> None:
    command = ["git", f"--git-dir={shadow}", f"--work-tree={root}"]
    subprocess.run([*command, "add", "--all"], cwd=root, check=True)
    subprocess.run([*command, "write-tree"], cwd=root, check=True, stdout=subprocess.DEVNULL)


def measure(place: Path, num_files: int, rounds: int) -> dict[str, float]:
    root, shadow = place / "repository", place / "shadow.git"
    root.mkdir()
    make_repository(root, num_files)
    snapshots = Snapshots(place / "snapshots", root)
    subprocess.run(["git", "init", "-q", "--bare", shadow], check=True)
    firsts = {"first": seconds(snapshots.take), "git first": seconds(lambda: git_state(root, shadow))}
    time.sleep(SETTLED)
    snapshots.take()  # reads once more what was new when it was first read
    names = ("unchanged", "one file changed", "undo", "git unchanged", "git one file changed")
    found: dict[str, list[float]] = {name: [] for name in names}
    changed = root / "package1/module1/m1.py"
    for number in range(rounds):
        found["unchanged"].append(seconds(snapshots.take))
        found["git unchanged"].append(seconds(lambda: git_state(root, shadow)))
        before = snapshots.take()
        changed.write_text(f"changed = {number}\n")
        found["one file changed"].append(seconds(snapshots.take))
        found["git one file changed"].append(seconds(lambda: git_state(root, shadow)))
        found["undo"].append(seconds(lambda name=before: snapshots.restore(name)))
    megabytes = sum(path.stat().st_size for path in root.glob("package*/*/*")) / 1e6
    stored = (place / "snapshots/snapshots.sqlite").stat().st_size / 1e6
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {**firsts, **medians, "repository (MB)": megabytes, "stored (MB)": stored}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    try:
        figures = measure(place, options.files, options.rounds)
    finally:
        shutil.rmtree(place)
    for name, value in figures.items():
        print(f"{name:<22} {value:8.3f}")
    if options.output:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        report = {"machine": machine, "files": options.files, "seconds": figures}
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
