"""Starts a worker and talks to it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from codemill.bench.engines import ENGINES, OURS, EngineOptions, Timing
from codemill.bench.workload import Measurement
from codemill.errors import CodemillError, UsageError

_PACKAGE = Path(__file__).resolve().parents[1]
_LONGEST_LINE = 300
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class EngineFailure(CodemillError):
    """An engine that is installed crashed, or cannot do what it is asked for."""


class Worker:
    """The process of one engine; a context that ends it."""

    def __init__(self, name: str, options: EngineOptions, python: str | None = None) -> None:
        """Start it and load the model. Raises as `start`."""
        self.name = name
        self._options, self._python = options, python
        self.start()

    def start(self) -> None:
        """Start the process, also once more after it has ended, and load the model.

        Raises CodemillError if the engine is not installed, UsageError for what it was told wrong, EngineFailure for
        everything else that goes wrong in it.
        """
        name, python, options = self.name, self._python, self._options
        self.peak_memory, self._is_closed = 0, False
        self._path = tempfile.TemporaryDirectory(prefix="codemill-bench-")
        command = [python or sys.executable, "-P", "-m", "codemill.bench.worker", name, json.dumps(options.to_json())]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=self._environment(options.num_threads, python),
                start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
            )
        except OSError as error:
            raise UsageError(f"{python} cannot be started ({error.strerror}): name a Python interpreter") from None
        try:
            ready = self._read()
        except BaseException:
            self.close()
            raise
        self.settings: list[str] = ready["settings"]
        self.load_seconds: float = ready["load_seconds"]
        self.empty_memory: int = ready["empty_memory"]
        self.peak_memory = ready["peak_memory"]
        self.weights: dict[str, Any] = ready["weights"]

    def _environment(self, num_threads: int, python: str | None) -> dict[str, str]:
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(num_threads))}
        if python is None:
            return environment
        # Another Python sees this package, and nothing else of what is installed beside it.
        (Path(self._path.name) / _PACKAGE.name).symlink_to(_PACKAGE, target_is_directory=True)
        return {**environment, "PYTHONPATH": self._path.name}

    def measure(self, measurement: Measurement, seed: int, setting: str) -> Timing:
        """One run with random prompts of that seed. Raises EngineFailure, or UsageError for what cannot be run."""
        request = {
            "num_prompt": measurement.num_prompt,
            "num_new": measurement.num_new,
            "batch": measurement.batch,
            "seed": seed,
            "setting": setting,
        }
        reply = self._ask(request)
        return Timing(reply["first_seconds"], reply["decode_seconds"])

    def forget_peak(self) -> None:
        """Have `peak_memory` count from now on."""
        self._ask({"forget_peak": True})

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise EngineFailure(self._ended()) from None
        reply = self._read()
        self.peak_memory = reply["peak_memory"]
        return reply

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineFailure(self._ended())
        reply: dict[str, Any] = json.loads(line)
        if "error" not in reply:
            return reply
        if reply.get("missing"):
            hint = f"install it there ({ENGINES[self.name].install}) or name another Python with --peers-python"
            raise CodemillError(f"{reply['error']}: {hint}")
        prefix = "" if self.name == OURS else f"{self.name}: "
        raise (UsageError if reply.get("usage") else EngineFailure)(prefix + reply["error"])

    def _ended(self) -> str:
        """Why the process has ended, as far as can be told."""
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        said = lines[-1][-_LONGEST_LINE:] if lines else "it said nothing"
        return f"the process of {self.name} ended early ({_status(status)}): {said}"

    def close(self) -> None:
        """End the process, and what it has started; once more is no harm."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._errors.close()
        self._path.cleanup()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _status(status: int) -> str:
    """How a process ended."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
