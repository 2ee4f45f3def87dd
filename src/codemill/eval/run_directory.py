"""The directory of one run: whose it is, whether it is complete, and how an interrupted run is found again.

`run.json` says with which configuration the directory was begun; only a run with the same one may continue it. What
else lies there is described in `results`, and `gold.json` holds the gold check.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from codemill.errors import CodemillError, UsageError

ROOT = Path("codemill-eval")  # in the working directory
RUN_FILE, GOLD_FILE = "run.json", "gold.json"
_OURS = (RUN_FILE, GOLD_FILE, "samples.jsonl", "prompts.jsonl", "results.json", "report.html")

Configuration = Mapping[str, Any]  # JSON values: all that decides what comes out


@dataclass(frozen=True)
class RunState:
    """What `run.json` holds. started: UTC, ISO 8601. seconds: working time so far. complete: nothing is left to do."""

    configuration: Configuration
    started: str
    seconds: float = 0.0
    complete: bool = False


class RunDirectory:
    """An open run directory, which no other process can open meanwhile."""

    def __init__(self, path: Path, state: RunState) -> None:
        self.path = path
        self.state = state

    def save(self, seconds: float, complete: bool) -> None:
        """Note the working time, and whether anything is left to do."""
        self.state = replace(self.state, seconds=seconds, complete=complete)
        _write_json(self.path / RUN_FILE, asdict(self.state))

    def read_gold(self) -> dict[str, str] | None:
        """The kept gold check: task id -> why its gold solution does not pass here. None if there was none yet."""
        path = self.path / GOLD_FILE
        try:
            return {str(task_id): str(why) for task_id, why in _read_json(path).items()} if path.exists() else None
        except (ValueError, AttributeError) as error:
            raise _damaged(path, error) from None

    def write_gold(self, failures: Mapping[str, str]) -> None:
        _write_json(self.path / GOLD_FILE, dict(failures))


@contextmanager
def open_run(
    output: Path | None, labels: Sequence[str], configuration: Configuration, overwrite: bool = False
) -> Iterator[RunDirectory]:
    """The directory `output`, or without one the newest unfinished run with this configuration, or a new one.

    labels: what a new directory below `ROOT` is named after. overwrite: begin again where there is a run. Raises
    UsageError for a directory that is another run's, is complete or holds other files, CodemillError if it is in use
    or damaged.
    """
    configuration = json.loads(json.dumps(configuration))  # as it is read back: tuples are lists
    path = output or _find_unfinished(configuration) or _new_path(labels)
    path.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        yield RunDirectory(path, _begin(path, configuration, overwrite))


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """No one else has the directory inside this block. The lock goes with the process, however that ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CodemillError(f"{path} is in use by another run: wait for it, or name another directory") from None
        yield
    finally:
        os.close(descriptor)


def _begin(path: Path, configuration: Configuration, overwrite: bool) -> RunState:
    state = _read_state(path)
    if state is None and any(path.iterdir()):
        raise UsageError(f"{path} holds files but no run: name a new directory with --output")
    if state is not None and not overwrite:
        if changes := _changes(state.configuration, configuration):
            raise UsageError(f"{path} is another run ({changes}): name another directory, or add --overwrite")
        if state.complete:
            raise UsageError(f"{path} holds this run, complete: name another directory, or add --overwrite")
        return state
    for name in _OURS:
        (path / name).unlink(missing_ok=True)
    state = RunState(configuration, datetime.now(UTC).isoformat(timespec="seconds"))
    _write_json(path / RUN_FILE, asdict(state))
    return state


def _changes(old: Configuration, new: Configuration) -> str:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    shown = [f"{name}: {_short(old.get(name))} there, {_short(new.get(name))} here" for name in names[:3]]
    return ", ".join(shown) + (", ..." if len(names) > 3 else "")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _find_unfinished(configuration: Configuration) -> Path | None:
    if not ROOT.is_dir():
        return None
    runs = sorted(ROOT.glob(f"*/{RUN_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in runs:
        state = _read_state(file.parent)
        if state is not None and not state.complete and state.configuration == configuration:
            return file.parent
    return None


def _new_path(labels: Sequence[str]) -> Path:
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = "-".join(re.sub(r"[^\w.+-]+", "-", label).strip("-.")[:60] for label in (*labels, now))
    path, number = ROOT / name, 2
    while path.exists():
        path, number = ROOT / f"{name}-{number}", number + 1
    return path


def _read_state(path: Path) -> RunState | None:
    file = path / RUN_FILE
    if not file.exists():
        return None
    try:
        value = _read_json(file)
        return RunState(**{field.name: value[field.name] for field in fields(RunState)})
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(file, error) from None


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_bytes())
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="ascii")
    os.replace(temporary, path)


def _damaged(path: Path, error: Exception) -> CodemillError:
    return CodemillError(f"{path} is damaged ({type(error).__name__}: {error}): name another directory")
