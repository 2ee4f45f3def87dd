"""Training files without what the benchmarks hold: read, checked and written one document at a time.

What is kept is written byte for byte as it was. What is not is named: contaminated documents in `*.removed.jsonl` with
the reason, lines that cannot be read in `*.malformed.jsonl` with their bytes. No input is changed.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codemill.data.clean_outputs import CleanOutputs, Destination
from codemill.data.contamination import ContaminationIndex, Match
from codemill.data.documents import Document, TrainingFile, read_documents

_FAULTS = 20  # are named in a summary


@dataclass(frozen=True)
class CleanSummary:
    """What was found. documents = kept + removed + malformed; without_text: those kept that hold no text to check.

    bytes: of the documents, decompressed. tasks: "suite" -> "task id" -> documents removed for it. kinds: how they were
    found. faults: the first malformed documents, a line each. outputs: what was written.
    """

    files: int
    documents: int
    kept: int
    removed: int
    malformed: int
    without_text: int
    bytes: int
    seconds: float
    tasks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def clean(
    inputs: Sequence[Path],
    files: Sequence[TrainingFile],
    index: ContaminationIndex,
    destination: Destination = Destination(),  # noqa: B008
    progress: Callable[[int], None] = lambda _: None,
) -> CleanSummary:
    """Check all documents of `files`, which `find_files` found for `inputs`, and write those that are clean.

    progress: called with numbers of bytes read. Outputs appear when all is done, or not at all. Raises UsageError if an
    output would overwrite an input or another output.
    """
    targets = destination.targets(inputs, files)
    start, counts = time.monotonic(), _Counts()
    with CleanOutputs(destination) as outputs:
        for file, target in zip(files, targets, strict=True):
            outputs.begin(file, target)
            for document in read_documents(file, progress):
                _sort(file, document, index, outputs, counts)
        written = outputs.commit()
    return counts.summary(len(files), time.monotonic() - start, written)


def _sort(
    file: TrainingFile, document: Document, index: ContaminationIndex, outputs: CleanOutputs, counts: "_Counts"
) -> None:
    counts.bytes += len(document.raw)
    if document.fault:
        line = f", line {document.line}" if document.line else ""
        counts.add_fault(f"{file.path}{line}: {document.fault}")
        outputs.set_apart(document)
        return
    match = index.find(document.text) if document.text else None
    if match is None:
        outputs.keep(document)
        counts.add_kept(document)
    else:
        outputs.remove(document, match)
        counts.add_removed(match)


@dataclass
class _Counts:
    kept: int = 0
    without_text: int = 0
    bytes: int = 0
    malformed: int = 0
    faults: list[str] = field(default_factory=list)
    tasks: dict[str, Counter[str]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)

    def add_kept(self, document: Document) -> None:
        if document.raw.strip():  # a blank line is kept too, but is no document
            self.kept += 1
            self.without_text += not document.text.strip()

    def add_removed(self, match: Match) -> None:
        self.tasks.setdefault(match.suite, Counter())[match.task_id] += 1
        self.kinds[match.kind] += 1

    def add_fault(self, fault: str) -> None:
        self.malformed += 1
        if len(self.faults) < _FAULTS:
            self.faults.append(fault)

    def summary(self, files: int, seconds: float, outputs: Sequence[Path]) -> CleanSummary:
        removed = self.kinds.total()
        return CleanSummary(
            files=files,
            documents=self.kept + removed + self.malformed,
            kept=self.kept,
            removed=removed,
            malformed=self.malformed,
            without_text=self.without_text,
            bytes=self.bytes,
            seconds=seconds,
            tasks={suite: dict(found.most_common()) for suite, found in self.tasks.items()},
            kinds=dict(self.kinds),
            faults=tuple(self.faults),
            outputs=tuple(map(str, outputs)),
        )
