"""Verdicts on a busy machine, and when the sandbox or the suite itself fails."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.eval import judging
from codemill.eval.generation import Generated, GenerationRequest
from codemill.eval.judging import Candidate, Judge, Judged, JudgingLoop
from codemill.eval.runner import evaluate
from codemill.eval.sample_log import SampleLog
from codemill.eval.suite import Answer, Judgement, Problem, Run
from codemill.sandbox.job import Job, Limits
from codemill.sandbox.pool import SandboxPool
from codemill.sandbox.result import RunResult
from eval.scripted import Scripted, drawn, evaluation, number, problems, verdicts
from eval.tiny import Notes, TinySuite


class Machine:
    """Stands in for the sandbox of `Judge`: gives `results` one after the other, and remembers the limits."""

    def __init__(self, *results: RunResult) -> None:
        self.results = list(results)
        self.limits: list[Limits] = []

    def run(self, job: Job) -> RunResult:
        self.limits.append(job.limits)
        return self.results.pop(0)


OK = RunResult("ok", 0, completed=True)
TIMEOUT = RunResult("timeout", wall_seconds=3.0, cpu_seconds=1.0)
WAITED = replace(TIMEOUT, waited_seconds=1.5)
BROKEN = RunResult("harness error", detail="the sandbox broke down")
CANDIDATE = Candidate(problems(1)[0], 0, Answer("0"))


def judge_all(machine: Machine, timeout: float | None = None) -> list[Judged]:
    found: list[Judged] = []
    JudgingLoop(Judge(TinySuite(), machine.run, timeout), 1, found.append).run([CANDIDATE])
    assert machine.results == []
    return found


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging.os, "getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.mark.usefixtures("quiet")
def test_a_timeout_on_a_quiet_machine_counts() -> None:
    (judged,) = judge_all(Machine(TIMEOUT))
    assert (judged.judgement.verdict, judged.is_final) == ("timeout", True)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("again", "verdict"), [(OK, "ok"), (WAITED, "timeout"), (RunResult("failed", 1), "failed")])
def test_a_timeout_of_a_run_that_had_to_wait_is_judged_again(again: RunResult, verdict: str) -> None:
    machine = Machine(WAITED, again)
    first, last = judge_all(machine)
    assert (first.is_final, last.judgement.verdict, last.is_final) == (False, verdict, True)
    assert [(limits.cpu_seconds, limits.wall) for limits in machine.limits] == [(0.5, 2.5), (0.625, 5.0)]


def test_a_timeout_under_load_is_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging.os, "getloadavg", lambda: (4.0 * (os.cpu_count() or 1), 0.0, 0.0))
    assert judge_all(Machine(TIMEOUT, OK))[-1].judgement.verdict == "ok"


@pytest.mark.usefixtures("quiet")
def test_the_users_limit_wins() -> None:
    machine = Machine(WAITED, OK)
    judge_all(machine, timeout=4.0)
    assert [(limits.cpu_seconds, limits.wall) for limits in machine.limits] == [(4.0, 6.0), (5.0, 12.0)]


@pytest.mark.parametrize(
    ("results", "verdict"),
    [((BROKEN, OK), "ok"), ((BROKEN, RunResult("failed", 1)), "failed"), ((BROKEN, BROKEN), "harness error")],
)
def test_a_harness_error_is_tried_again_once(results: tuple[RunResult, ...], verdict: str) -> None:
    (judged,) = judge_all(Machine(*results))
    assert (judged.judgement.verdict, judged.is_final) == (verdict, True)


def test_a_doubtful_timeout_is_kept_for_a_run_that_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is not drawn again, and it never counts before it is judged alone."""
    monkeypatch.setattr(judging.os, "getloadavg", lambda: (4.0 * (os.cpu_count() or 1), 0.0, 0.0))
    endless = Scripted(lambda request: "1\nwhile True: pass" if request.task_id == "T/1" else number(request))
    path = tmp_path / "run"
    with monkeypatch.context() as patched:

        def interrupt(self: Judge, candidate: Candidate) -> Judged:
            raise KeyboardInterrupt

        patched.setattr(Judge, "judge_alone", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate(evaluation(drawn(endless), 2, output=path), Notes())
    kept = {record.task_id: record for record in SampleLog(path / "samples.jsonl").read().records}
    assert (kept["T/1"].verdict, kept["T/1"].raw) == ("harness error", "1\nwhile True: pass")
    second = Scripted(number)
    found = evaluate(evaluation(drawn(second), 2, output=path), Notes())
    assert second.asked == []
    assert verdicts(found) == {"T/0": ("ok",), "T/1": ("timeout",)}


def test_harness_errors_do_not_count_and_are_tried_by_the_next_run(tmp_path: Path) -> None:
    class Unreliable(Scripted):
        def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generated]:
            for request in requests:
                if request.task_id == "T/1":
                    yield Generated(request, error="the server answered 500")
                else:
                    yield from super().generate([request])

    path = tmp_path / "run"
    found = evaluate(evaluation(drawn(Unreliable(number)), 4, output=path), Notes())
    assert found.results.pass_at_1 == 1.0
    assert found.results.scores.verdicts["harness error"] == 1
    assert found.results.scores.excluded == {"T/1": "harness error in its sample"}
    assert [r.detail for r in found.records if r.verdict == "harness error"] == ["the server answered 500"]
    second = Scripted(lambda request: "nonsense")
    found = evaluate(evaluation(drawn(second), 4, output=path), Notes())
    assert [request.task_id for request in second.asked] == ["T/1"]
    assert found.results.scores.verdicts == {**dict.fromkeys(found.results.scores.verdicts, 0), "ok": 3, "failed": 1}
    with pytest.raises(UsageError, match="complete"):
        evaluate(evaluation(drawn(second), 4, output=path), Notes())


@pytest.mark.parametrize("error", [RecursionError("too deep"), MemoryError(), ValueError("nul\nbyte"), OSError("gone")])
def test_a_suite_that_chokes_on_an_answer(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def choke(self: TinySuite, problem: Problem, *_: Any) -> Any:
        if problem.task_id == "T/1":
            raise error
        return Answer("0") if len(_) == 2 and isinstance(_[0], str) else Judgement("ok")

    for method in ("judge", "clean"):
        with monkeypatch.context() as patched:
            patched.setattr(TinySuite, method, choke)
            found = evaluate(evaluation(drawn(Scripted(number)), 2), Notes())
        assert verdicts(found)["T/1"] == ("harness error",)
        assert verdicts(found)["T/0"] == ("ok",)
        (detail,) = (record.detail for record in found.records if record.verdict == "harness error")
        assert type(error).__name__ in detail


def test_a_sandbox_that_cannot_start_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: SandboxPool, *_: Any) -> None:
        raise CodemillError("no isolation here: --unsafe")

    monkeypatch.setattr(SandboxPool, "__init__", refuse)
    with pytest.raises(CodemillError, match="no isolation here"):
        evaluate(evaluation(drawn(Scripted(number))), Notes())


def test_a_suite_that_runs_nothing_needs_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SandboxPool, "__init__", lambda *_: pytest.fail("the sandbox was started"))
    monkeypatch.setattr(TinySuite, "judge", lambda *_: Judgement("ok"))
    assert evaluate(evaluation(drawn(Scripted(number))), Notes()).results.pass_at_1 == 1.0


HARD = {
    "T/0": "0",
    "T/1": "2",
    "T/2": "2\nwhile True: pass",
    "T/3": "3\nimport time\ntime.sleep(60)",
    "T/4": "4\nimport time\nend = time.process_time() + 0.15\nwhile time.process_time() < end: pass",
    "T/5": "5\nexit()",
}


def _spin(stop: Any) -> None:
    while not stop.is_set():
        sum(range(10_000))


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Three processes for each CPU that want all of it."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    spinners = [context.Process(target=_spin, args=(stop,), daemon=True) for _ in range(3 * (os.cpu_count() or 1))]
    for spinner in spinners:
        spinner.start()
    yield
    stop.set()
    for spinner in spinners:
        spinner.join(20)


class Impatient(TinySuite):
    """Tight limits: a run that has to share its CPU with three others runs into the wall limit first."""

    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        tight = Limits(cpu_seconds=0.4, wall_seconds=0.8)

        def run_tight(job: Job) -> RunResult:
            return run(replace(job, limits=tight))

        return super().judge(problem, answer, run_tight)


@pytest.mark.usefixtures("busy_machine")
def test_five_runs_under_heavy_load_give_the_same_verdicts() -> None:
    expected = dict(zip(HARD, ("ok", "failed", "timeout", "timeout", "ok", "failed"), strict=True))
    for _ in range(5):
        model = Scripted(lambda request: HARD[request.task_id])
        found = evaluate(evaluation(drawn(model), suite=Impatient(), workers=4), Notes())
        assert {task_id: given[0] for task_id, given in verdicts(found).items()} == expected
