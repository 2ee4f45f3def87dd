"""Whether a training text holds a benchmark problem: by shared runs of words, and by near-duplicate programs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from codemill.data.near_duplicates import NearDuplicateIndex
from codemill.data.ngrams import KnownText, NgramIndex
from codemill.data.shingles import TokenHashes
from codemill.errors import UsageError

Kind = Literal["n-gram", "near-duplicate"]

_EVIDENCE = 200  # characters
_PIECE, _OVERLAP = 1_000_000, 10_000  # characters of a long text that are looked at together, and twice
_LONGEST_PART = 50_000  # characters of a problem's part: what follows in longer ones is more of the same test data
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Sensitivity:
    """ngram: words in a run that a text may not share with a problem. similarity: Jaccard index of shingles from which
    on a text is a near-duplicate of one (0 to 1). What more than `most_problems` problems have is nobody's."""

    ngram: int = 10
    most_problems: int = 3
    similarity: float = 0.7

    def __post_init__(self) -> None:
        if self.ngram < 2 or self.most_problems < 1:
            raise UsageError(
                f"a run of {self.ngram} words in at most {self.most_problems} problems: use at least 2 and 1"
            )
        if not 0.3 <= self.similarity <= 1.0:
            raise UsageError(f"a similarity of {self.similarity}: it must be 0.3 to 1")


@dataclass(frozen=True)
class BenchmarkProblem:
    """The texts of a problem by the names of their parts: prompt, solution, tests and whatever else it has."""

    suite: str
    task_id: str
    parts: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Match:
    """Why a text is contaminated. evidence: the shared words, or the beginning of what is a near-duplicate; similarity:
    of a near-duplicate."""

    suite: str
    task_id: str
    part: str
    kind: Kind
    evidence: str
    similarity: float | None = None


@dataclass(frozen=True)
class _Part:
    problem: BenchmarkProblem
    name: str
    text: str


class ContaminationIndex:
    """The problems that training texts are checked against. Memory grows with the problems, not with the texts."""

    def __init__(self, problems: Sequence[BenchmarkProblem], sensitivity: Sensitivity = Sensitivity()) -> None:
        self._hashes = TokenHashes()
        self._parts = _distinct_parts(problems)
        known = [KnownText(part.text, _owner(part.problem)) for part in self._parts]
        most = sensitivity.most_problems
        self._ngrams = NgramIndex(known, sensitivity.ngram, most, self._hashes)
        self._similar = NearDuplicateIndex(known, sensitivity.similarity, most, self._hashes)

    def find(self, text: str) -> Match | None:
        """The first sign that `text` holds a problem, or None."""
        return next(filter(None, map(self._find, _pieces(text))), None)

    def _find(self, text: str) -> Match | None:
        run = self._ngrams.first_shared(text)
        if run is not None:
            return self._match(run.key, "n-gram", run.words)
        near = self._similar.find(text)
        if near is not None:
            return self._match(near.key, "near-duplicate", near.block.strip()[:_EVIDENCE], round(near.similarity, 3))
        return None

    def _match(self, key: int, kind: Kind, evidence: str, similarity: float | None = None) -> Match:
        part = self._parts[key]
        return Match(part.problem.suite, part.problem.task_id, part.name, kind, evidence, similarity)


def _distinct_parts(problems: Sequence[BenchmarkProblem]) -> list[_Part]:
    """Every text of a problem once, the longest first, without those that lie within another of the same problem."""
    seen: set[tuple[str, str]] = set()
    parts = []
    for problem in problems:
        taken: list[str] = []
        shortened = [(name, text[:_LONGEST_PART]) for name, text in problem.parts.items()]
        for name, text in sorted(shortened, key=lambda item: -len(item[1])):
            if any(text in longer for longer in taken):
                continue
            taken.append(text)
            form = _owner(problem), text
            if form not in seen:
                seen.add(form)
                parts.append(_Part(problem, name, text))
    return parts


def _owner(problem: BenchmarkProblem) -> str:
    """The same for all forms of a problem: suites of one origin number their problems alike (HumanEval/23,
    HumanEval_23_strlen, SingleLineInfilling/HumanEval/23/L4)."""
    number = _NUMBER.search(problem.task_id)
    return number.group() if number else problem.task_id


def _pieces(text: str) -> Iterator[str]:
    """The text in overlapping pieces, so that a huge one takes no more memory than a long one."""
    for start in range(0, max(1, len(text) - _OVERLAP), _PIECE - _OVERLAP):
        yield text[start : start + _PIECE]
