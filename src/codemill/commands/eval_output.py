"""What `codemill eval` shows: progress on standard error, results on standard output."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.commands import print_json
from codemill.errors import CodemillError, UsageError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from codemill.eval.evaluation import Outcome, Tally
    from codemill.eval.plan import Plan
    from codemill.eval.request import EvalRequest
    from codemill.eval.suite import SuiteOptions

_NAMED = 20  # bad lines of a samples file, or task ids
_SECONDS_BETWEEN_LINES = 10.0


def run_evaluation(request: "EvalRequest", as_json: bool) -> None:
    """Evaluate, print the results, and raise CodemillError if the work failed or did not hold what it should."""
    from codemill.eval.plan import plan
    from codemill.eval.runner import evaluate

    planned = plan(request)
    with _Display() as display:
        for line in _warnings(planned):
            display.note(line)
        try:
            outcome = evaluate(planned.evaluation, display)
        except KeyboardInterrupt:
            kept = planned.evaluation.labels or planned.evaluation.output
            display.note("stopped: the same command continues" if kept else "stopped")
            raise
    if as_json:
        directory = str(outcome.directory) if outcome.directory is not None else None
        print_json(outcome.results.to_json() | {"directory": directory, "missing": list(planned.missing)})
    else:
        print(_as_text(outcome))
    _raise_failure(planned, outcome)


def _warnings(planned: "Plan") -> list[str]:
    """What is wrong with the samples file; a bad line is named, and all others count."""
    lines = [f"warning: {problem}" for problem in planned.problems[:_NAMED]]
    if len(planned.problems) > _NAMED:
        lines.append(f"warning: and {len(planned.problems) - _NAMED} more such lines")
    if planned.missing:
        lines.append(f"warning: no sample for {len(planned.missing)} tasks: {_listed(planned.missing)}")
    return lines


def _listed(names: Any, most: int = 5) -> str:
    shown = list(names)[:most]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def _as_text(outcome: "Outcome") -> str:
    results, scores = outcome.results, outcome.results.scores
    name = " ".join(filter(None, [results.title, results.variant, results.language]))
    scored = len(results.problems) - len(scores.excluded)
    lines = [f"{name}: {len(results.problems)} problems" + (f", {scored} scored" if scores.excluded else "")]
    for k, estimate in scores.pass_at.items():
        low, high = 100 * estimate.interval.low, 100 * estimate.interval.high
        lines.append(f"  pass@{k}  {100 * estimate.value:.2f} %  (95 % interval {low:.1f} to {high:.1f})")
    lines += [f"  {name}  {value:.4g}" for name, value in results.summary.items()]
    counts = [f"{verdict} {count}" for verdict, count in scores.verdicts.items() if count]
    lines.append(f"  {', '.join(counts)}")
    lines += [f"  not in the score: {task_id}: {why}" for task_id, why in list(scores.excluded.items())[:_NAMED]]
    if len(scores.excluded) > _NAMED:
        lines.append(f"  and {len(scores.excluded) - _NAMED} more that are not in the score")
    if outcome.directory is not None:
        lines.append(f"  {outcome.directory / 'report.html'}")
    return "\n".join(lines)


def _raise_failure(planned: "Plan", outcome: "Outcome") -> None:
    """Raise CodemillError for what makes the exit status 1."""
    source = outcome.results.configuration.source
    expected = {"gold": True, "buggy": False}.get(source)
    surprises = [r for r in outcome.records if expected is not None and (r.verdict == "ok") is not expected]
    if surprises:
        shown = "; ".join(f"{r.task_id} ({' '.join([r.verdict, *r.detail.split()])[:200]})" for r in surprises[:5])
        more = f" and {len(surprises) - 5} more" if len(surprises) > 5 else ""
        verb = "do not pass" if source == "gold" else "pass"
        raise CodemillError(f"{len(surprises)} of {len(outcome.records)} {source} solutions {verb}: {shown}{more}")
    if outcome.results.pass_at_1 is None:
        reason = next((r.detail for r in outcome.records if r.verdict == "harness error"), "see the gold check")
        raise CodemillError(f"no sample could be judged: {reason}")
    if planned.problems:
        raise CodemillError(f"{len(planned.problems)} samples could not be taken; the first: {planned.problems[0]}")


class _Display:
    """Progress on standard error: bars on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(file=sys.stderr)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[more]}"),
        )
        is_hidden = not self._console.is_terminal
        self._progress = Progress(*columns, TimeRemainingColumn(), console=self._console, disable=is_hidden)
        self._task: TaskID | None = None
        self._name, self._begun, self._shown, self._done_before = "", 0.0, 0.0, 0

    def __enter__(self) -> "_Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stage(self, name: str, tally: "Tally") -> None:
        self._name = name
        self._begun = self._shown = time.monotonic()
        self._done_before = tally.done
        self._task = self._progress.add_task(name, total=tally.total, completed=tally.done, more="")

    def advance(self, tally: "Tally") -> None:
        now = time.monotonic()
        rate = (tally.done - self._done_before) / max(now - self._begun, 1e-9)
        more = f"{rate:.1f}/s"
        if tally.score is not None:
            more += f", {100 * tally.score:.1f} % pass"
        if self._task is not None:
            self._progress.update(self._task, completed=tally.done, more=more)
        is_due = tally.done == tally.total or now - self._shown > _SECONDS_BETWEEN_LINES
        if is_due and not self._console.is_terminal:
            self._shown = now
            self.note(f"{self._name}: {tally.done}/{tally.total}, {more}")


def print_suites(as_json: bool) -> None:
    """`codemill eval list`."""
    from codemill.eval.registry import suite_class, suite_names

    rows = []
    for name in suite_names():
        found = suite_class(name)
        rows.append((name, found.title, found.styles))
    if as_json:
        print_json([dict(zip(("name", "title", "styles"), row, strict=True)) for row in rows])
        return
    for name, title, styles in rows:
        print(f"{name:20} {title:44} {', '.join(styles)}")


def print_languages(suite: str, part: "SuiteOptions", as_json: bool) -> None:
    """`--languages`: which languages of a suite can be judged on this host."""
    from codemill.eval.registry import get_suite

    found = get_suite(suite, part)
    if found.name != "multipl-e":
        raise UsageError(f"{found.title} has no table of languages: --languages is for multipl-e")
    from codemill.eval.multipl_e import language_table

    rows = language_table()
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    for row in rows:
        state = row.missing or row.version or "there"
        print(f"{row.name:14} {row.code:6} {' '.join(row.packages):34} {state}")


def print_comparison(a: Path, b: Path, output: Path | None, as_json: bool) -> None:
    """`codemill eval compare A B`; with `output` also as a page."""
    from codemill.eval.compare import compare, render
    from codemill.eval.report_html import write_diff
    from codemill.eval.results import RunResults

    comparison = compare(RunResults.load(a), RunResults.load(b))
    if output is not None:
        write_diff(a, b, output)
    if as_json:
        print_json(comparison.to_json())
    else:
        print(render(comparison))
