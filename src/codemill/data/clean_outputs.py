"""The files that cleaning writes: clean copies, the report of what was removed, and the lines that cannot be read."""

import gzip
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from codemill.data.contamination import Match
from codemill.data.documents import Document, TrainingFile
from codemill.errors import UsageError


@dataclass(frozen=True)
class Destination:
    """Where the results go. output: a file if the input is a single file, else a folder; None writes no copy.

    report: a JSON Lines file of what was removed; by default beside the output.
    """

    output: Path | None = None
    report: Path | None = None

    @property
    def report_path(self) -> Path | None:
        return self.report or self._beside("removed")

    @property
    def malformed_path(self) -> Path | None:
        return self._beside("malformed")

    def targets(self, inputs: Sequence[Path], files: Sequence[TrainingFile]) -> list[Path | None]:
        """The clean copy of each file. Raises UsageError if one would overwrite an input or another one."""
        if self.output is None:
            return [None] * len(files)
        is_file = len(inputs) == 1 and inputs[0].is_file() and not self.output.is_dir()
        targets = [self.output if is_file else self.output / file.name for file in files]
        _check_distinct(files, targets)
        for given in inputs:
            if given.is_dir() and self.output.resolve().is_relative_to(given.resolve()):
                raise UsageError(f"--output {self.output} lies in the input {given}: choose another place")
        return [*targets]

    def _beside(self, what: str) -> Path | None:
        return None if self.output is None else self.output.with_name(f"{self.output.name}.{what}.jsonl")


def _check_distinct(files: Sequence[TrainingFile], targets: Sequence[Path]) -> None:
    sources = {file.path.resolve() for file in files}
    seen: dict[Path, Path] = {}
    for file, target in zip(files, targets, strict=True):
        if target.resolve() in sources:
            raise UsageError(f"{target} is an input: choose another --output")
        if target in seen:
            raise UsageError(f"{seen[target]} and {file.path} would both be written to {target}: clean them apart")
        seen[target] = file.path


class CleanOutputs:
    """Files under temporary names, which get their own when all of them are complete."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._open_files = ExitStack()
        self._finals: dict[Path, Path] = {}  # by temporary name
        self._file: TrainingFile | None = None
        self._target: Path | None = None
        self._copy: IO[bytes] | gzip.GzipFile | None = None
        self._copy_files = ExitStack()
        self._report: IO[bytes] | None = None
        self._malformed: IO[bytes] | None = None

    def __enter__(self) -> Self:
        if self._destination.report_path is not None:
            self._report = self._open_files.enter_context(self._create(self._destination.report_path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        for temporary in self._finals:
            temporary.unlink(missing_ok=True)

    def begin(self, file: TrainingFile, target: Path | None) -> None:
        """What follows is of `file`, whose clean copy is `target`."""
        self._copy_files.close()
        self._file, self._target, self._copy = file, target, None
        if file.has_records:
            self._open_copy()  # also if no record is kept: an empty file says so

    def keep(self, document: Document) -> None:
        if self._copy is None:
            self._open_copy()
        if self._copy is not None:
            self._copy.write(document.raw)

    def remove(self, document: Document, match: Match) -> None:
        self._write(self._report, {**self._where(document), **asdict(match)})

    def set_apart(self, document: Document) -> None:
        """A document that cannot be read: its line as it is, escaped; of a whole file only the name."""
        path = self._destination.malformed_path
        if self._malformed is None and path is not None:
            self._malformed = self._open_files.enter_context(self._create(path))
        found = {**self._where(document), "fault": document.fault}
        if document.line is not None:
            found["bytes"] = document.raw.decode("utf-8", "surrogateescape")
        self._write(self._malformed, found)

    def commit(self) -> list[Path]:
        """Give all files their names, and return these."""
        self._close()
        for temporary, final in self._finals.items():
            os.replace(temporary, final)
        written = list(self._finals.values())
        self._finals.clear()
        stale = self._destination.malformed_path
        if stale is not None and stale not in written:
            stale.unlink(missing_ok=True)  # of an earlier run over the same output
        return written

    def _where(self, document: Document) -> dict[str, Any]:
        return {"file": str(self._file.path) if self._file else None, "line": document.line}

    def _open_copy(self) -> None:
        if self._target is None or self._file is None:
            return
        stored = self._copy_files.enter_context(self._create(self._target))
        self._copy = stored
        if self._file.is_gzip:
            # No name and no time in it: the same data gives the same bytes.
            packed = gzip.GzipFile(filename="", mode="wb", fileobj=stored, mtime=0)
            self._copy = self._copy_files.enter_context(packed)

    def _create(self, path: Path) -> IO[bytes]:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.partial")
        self._finals[temporary] = path
        return temporary.open("wb")

    def _write(self, file: IO[bytes] | None, value: dict[str, Any]) -> None:
        if file is not None:
            file.write(json.dumps(value).encode("ascii") + b"\n")

    def _close(self) -> None:
        self._copy_files.close()
        self._open_files.close()
