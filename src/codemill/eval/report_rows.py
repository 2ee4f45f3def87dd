"""What the table of a report holds: a row a problem, with texts short enough for a page that still opens.

The keys of these dictionaries are what `web/report.js` reads.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from codemill.eval.compare import pass_rates
from codemill.eval.results import ProblemResult, RunResults
from codemill.eval.sample_log import SampleRecord

PAGE_CHARACTERS = 40_000_000  # of all texts of a page together, about
LONGEST_TEXT, SHORTEST_TEXT = 20_000, 400  # what is shown of one text at most, and however full the page is
_TAIL = 0.25  # of what is shown of a long text comes from its end
_PAIRS = 10  # samples of one problem in a diff
_ERROR = 300  # characters of an error in the table itself


@dataclass(frozen=True)
class Shortener:
    """Shortens texts to `longest` characters, their beginning and their end."""

    longest: int = LONGEST_TEXT

    @classmethod
    def fitting(cls, lengths: Iterable[int]) -> "Shortener":
        """One with which texts of these lengths fit on a page."""
        found = list(lengths)
        longest = LONGEST_TEXT
        while longest > SHORTEST_TEXT and sum(min(length, longest) for length in found) > PAGE_CHARACTERS:
            longest = max(SHORTEST_TEXT, longest * 3 // 4)
        return cls(longest)

    def __call__(self, text: str) -> tuple[str, int]:
        """What is shown, and how many characters of the text are not."""
        cut = len(text) - self.longest
        if cut <= 0:
            return text, 0
        tail = int(self.longest * _TAIL)
        head = self.longest - tail
        return f"{text[:head]}\n[... {cut:,} characters left out ...]\n{text[len(text) - tail :]}", cut

    def fields(self, **texts: str) -> dict[str, str | int]:
        """name -> text and name_cut -> characters left out, for each of the texts."""
        shown: dict[str, str | int] = {}
        for name, text in texts.items():
            shown[name], shown[f"{name}_cut"] = self(text)
        return shown


def run_rows(results: RunResults, samples: Sequence[SampleRecord], prompts: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each problem of a run, in the order of the suite."""
    shorten = _shortener(samples, prompts)
    of_problem = _by_problem(samples)
    return [
        _run_row(problem, of_problem.get(problem.task_id, []), prompts.get(problem.task_id), shorten)
        for problem in results.problems
    ]


def _run_row(
    problem: ProblemResult, samples: Sequence[SampleRecord], prompt: str | None, shorten: Shortener
) -> dict[str, Any]:
    counted = [verdict for verdict in problem.verdicts if verdict != "harness error"]
    return {
        "id": problem.task_id,
        "keys": _keys(problem),
        "verdicts": list(problem.verdicts),
        "rate": counted.count("ok") / len(counted) if counted else None,
        "score": _mean(sample.score for sample in samples),
        "seconds": _mean(sample.seconds for sample in samples),
        "error": next((_last_line(sample.detail) for sample in samples if sample.detail), ""),
        "samples": [_sample(sample, shorten) for sample in samples],
        **_prompt(prompt, shorten),
    }


def _sample(sample: SampleRecord, shorten: Shortener) -> dict[str, Any]:
    same = sample.raw == sample.completion
    return {
        "index": sample.index,
        "seed": sample.seed,
        "verdict": sample.verdict,
        "score": sample.score,
        "seconds": sample.seconds,
        "whole": sample.whole,
        **shorten.fields(raw=sample.raw, detail=sample.detail),
        **({"completion": None} if same else shorten.fields(completion=sample.completion)),
    }


def diff_rows(
    results: tuple[RunResults, RunResults],
    samples: tuple[Sequence[SampleRecord], Sequence[SampleRecord]],
    prompts: Mapping[str, str],
) -> list[dict[str, Any]]:
    """A row for each problem whose verdicts are not the same in both runs, in the order of the first."""
    shorten = _shortener([*samples[0], *samples[1]], prompts)
    a, b = ({problem.task_id: problem for problem in run.problems} for run in results)
    rates_a, rates_b = (pass_rates(run) for run in results)
    of_a, of_b = (_by_problem(of_run) for of_run in samples)
    rows = []
    for task_id in {**a, **b}:
        verdicts_a, verdicts_b = (list(run[task_id].verdicts) if task_id in run else [] for run in (a, b))
        if sorted(verdicts_a) == sorted(verdicts_b):
            continue
        rate_a, rate_b = rates_a.get(task_id), rates_b.get(task_id)
        pairs, left_out = _pairs(of_a.get(task_id, []), of_b.get(task_id, []), shorten)
        rows.append(
            {
                "id": task_id,
                "keys": [_change(rate_a, rate_b)],
                "a": rate_a,
                "b": rate_b,
                "verdicts_a": verdicts_a,
                "verdicts_b": verdicts_b,
                "pairs": pairs,
                "left_out": left_out,
                **_prompt(prompts.get(task_id), shorten),
            }
        )
    return rows


def _change(a: float | None, b: float | None) -> str:
    if a is None or b is None:
        return "scored in neither" if a is b else "only in A" if b is None else "only in B"
    return "gained" if b > a else "lost" if b < a else "same score"


def _pairs(
    a: Sequence[SampleRecord], b: Sequence[SampleRecord], shorten: Shortener
) -> tuple[list[dict[str, Any]], int]:
    """The samples of one problem whose verdicts differ, by index (all of them if none does), and how many are left
    out because there are too many."""
    of_a, of_b = ({sample.index: sample for sample in samples} for samples in (a, b))
    both = [(index, of_a.get(index), of_b.get(index)) for index in sorted({*of_a, *of_b})]
    changed = [pair for pair in both if _verdict(pair[1]) != _verdict(pair[2])] or both
    return [_pair(*pair, shorten) for pair in changed[:_PAIRS]], max(0, len(changed) - _PAIRS)


def _pair(index: int, a: SampleRecord | None, b: SampleRecord | None, shorten: Shortener) -> dict[str, Any]:
    (text_a, cut_a), (text_b, cut_b) = (shorten(sample.completion if sample else "") for sample in (a, b))
    lines_a, lines_b = text_a.split("\n"), text_b.split("\n")
    same_a, same_b = set[int](), set[int]()
    for block in SequenceMatcher(None, lines_a, lines_b).get_matching_blocks():
        same_a.update(range(block.a, block.a + block.size))
        same_b.update(range(block.b, block.b + block.size))
    return {
        "index": index,
        "a": _side(a, lines_a, same_a, cut_a, shorten),
        "b": _side(b, lines_b, same_b, cut_b, shorten),
    }


def _side(
    sample: SampleRecord | None, lines: Sequence[str], same: set[int], cut: int, shorten: Shortener
) -> dict[str, Any] | None:
    if sample is None:
        return None
    marked = [[number not in same, line] for number, line in enumerate(lines)]
    return {"verdict": sample.verdict, "detail": shorten(sample.detail)[0], "lines": marked, "cut": cut}


def _shortener(samples: Iterable[SampleRecord], prompts: Mapping[str, str]) -> Shortener:
    of_samples = (len(text) for sample in samples for text in (sample.raw, sample.completion, sample.detail))
    return Shortener.fitting([*of_samples, *map(len, prompts.values())])


def _by_problem(samples: Iterable[SampleRecord]) -> dict[str, list[SampleRecord]]:
    gathered: dict[str, list[SampleRecord]] = {}
    for sample in samples:
        gathered.setdefault(sample.task_id, []).append(sample)
    return {task_id: sorted(of, key=lambda sample: sample.index) for task_id, of in gathered.items()}


def _prompt(prompt: str | None, shorten: Shortener) -> dict[str, Any]:
    return {"prompt": None} if prompt is None else shorten.fields(prompt=prompt)


def _keys(problem: ProblemResult) -> list[str]:
    return list(dict.fromkeys(problem.verdicts)) or ["no sample"]


def _verdict(sample: SampleRecord | None) -> str | None:
    return sample.verdict if sample else None


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:_ERROR] if lines else ""
