"""`samples.jsonl` and `prompts.jsonl` of a run directory: what was asked, what was answered, and the verdicts.

A line is added as soon as its sample is judged, so a run that is stopped loses at most the line it was writing. JSON in
ASCII: whatever a model wrote, NUL bytes and lone surrogates too, comes back as it was.
"""

import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from codemill.errors import CodemillError
from codemill.sandbox.result import Status


@dataclass(frozen=True)
class SampleRecord:
    """One answer and its verdict. raw: what the model wrote; completion: what of it was judged, a whole program if
    `whole`. seed: None if the text was not drawn by us. seconds: judging, not generating."""

    task_id: str
    index: int
    seed: int | None
    raw: str
    completion: str
    whole: bool
    verdict: Status
    detail: str = ""
    score: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class PromptRecord:
    """What the model was asked, as text for a reader: the prompt, or the messages one below the other."""

    task_id: str
    prompt: str


@dataclass(frozen=True)
class LogContents:
    """What a log holds. note: one line if its last line was left unfinished, else empty."""

    records: list[SampleRecord]
    note: str = ""


class SampleLog:
    """The samples of one run, a line each. `append` may be called from several threads of one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._repaired = False

    def append(self, record: SampleRecord) -> None:
        """Add a sample and hand it to the operating system. A line that a killed run left unfinished goes first."""
        line = _to_line(record)
        with self._lock:
            if not self._repaired:
                _end_last_line(self.path)
                self._repaired = True
            with self.path.open("ab") as file:
                file.write(line)

    def read(self) -> LogContents:
        """All samples in the order they were first written; one written again (a retry) replaces the first.

        A missing file has none. Raises CodemillError naming file and line for a line that is no sample, unless it is
        the unfinished last one.
        """
        if not self.path.exists():
            return LogContents([])
        records: dict[tuple[str, int], SampleRecord] = {}
        note = ""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = _parse_sample(line)
                except ValueError as error:
                    if line.endswith(b"\n"):
                        raise CodemillError(f"{self.path}, line {number}: {error}") from None
                    note = f"{self.path}, line {number}: unfinished, left out"
                    continue
                records[record.task_id, record.index] = record
        return LogContents(list(records.values()), note)


def write_prompts(directory: Path, prompts: Iterable[PromptRecord]) -> None:
    """Write `prompts.jsonl`, which the report shows beside the answers."""
    temporary = directory / "prompts.jsonl.partial"
    with temporary.open("wb") as file:
        file.writelines(_to_line(prompt) for prompt in prompts)
    os.replace(temporary, directory / "prompts.jsonl")


def read_prompts(directory: Path) -> dict[str, str]:
    """Task id -> prompt; empty if the run kept none. Raises CodemillError naming file and line."""
    path = directory / "prompts.jsonl"
    return {record["task_id"]: record["prompt"] for record in _prompt_lines(path)} if path.exists() else {}


def _prompt_lines(path: Path) -> Iterator[Mapping[str, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = _parse_object(line)
                _check(record, "task_id", str)
                _check(record, "prompt", str)
            except ValueError as error:
                raise CodemillError(f"{path}, line {number}: {error}") from None
            yield record


def _to_line(record: SampleRecord | PromptRecord) -> bytes:
    return json.dumps(asdict(record), allow_nan=False).encode("ascii") + b"\n"


def _end_last_line(path: Path) -> None:
    """Make the file end in a line end: complete a last line that is whole but for it, and drop one that is not."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        last = next(iter(deque(file, maxlen=1)), b"\n")
        if last.endswith(b"\n"):
            return
        try:
            _parse_sample(last)
            file.write(b"\n")
        except ValueError:
            file.truncate(file.tell() - len(last))


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "task_id": str,
    "index": int,
    "seed": (int, type(None)),
    "raw": str,
    "completion": str,
    "whole": bool,
    "verdict": str,
    "detail": str,
    "score": (int, float, type(None)),
    "seconds": (int, float),
}


def _parse_sample(line: bytes) -> SampleRecord:
    record = _parse_object(line)
    for name, kind in _KINDS.items():
        _check(record, name, kind)
    if record["verdict"] not in get_args(Status):
        raise ValueError(f"verdict {record['verdict']!r} is none of {', '.join(get_args(Status))}")
    return SampleRecord(**{field.name: record[field.name] for field in fields(SampleRecord)})


def _parse_object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _check(record: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> None:
    if name not in record:
        raise ValueError(f"the field {name!r} is missing")
    value = record[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"the field {name!r} cannot be {str(value)[:60]!r}")
