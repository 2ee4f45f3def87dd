"""From answers to verdicts, in threads over a sandbox, so that a busy or a failing machine is not blamed on an answer.

A timeout while the machine was busy is not counted: the answer is judged again when all else is done, alone. A harness
error gets a second try at once.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from codemill.eval.suite import Answer, Judgement, Problem, Run, Suite
from codemill.sandbox.job import Job, Limits
from codemill.sandbox.result import RunResult

# What an answer may make a suite's own code raise: text that no parser was made for.
UNJUDGEABLE = (ValueError, RecursionError, MemoryError, OSError)
WAITED_SHARE = 0.1  # of its time that a run had to wait for a CPU: the machine was busy
BUSY_LOAD = 1.5  # load average for each CPU


@dataclass(frozen=True)
class Candidate:
    """An answer on its way to a verdict, or where there is none the verdict that this amounts to.

    raw: what the answer was taken from. note: one line on how it came about, for the record.
    """

    problem: Problem
    index: int
    answer: Answer | Judgement
    raw: str = ""
    seed: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Judged:
    """A verdict. seconds: how long judging took. is_final: no later one will replace it."""

    candidate: Candidate
    judgement: Judgement
    seconds: float = 0.0
    is_final: bool = True


class Judge:
    """Judges answers of one suite. run: the sandbox's. timeout: CPU seconds of a run instead of the suite's limit."""

    def __init__(self, suite: Suite, run: Run, timeout: float | None = None) -> None:
        self._suite = suite
        self._run = run
        self._timeout = timeout

    def judge(self, candidate: Candidate) -> Judged:
        """The verdict, which is not final if it is a timeout that may be the machine's fault."""
        judged, is_doubtful = self._once(candidate, alone=False)
        if judged.judgement.verdict == "harness error":
            judged, is_doubtful = self._once(candidate, alone=False)
        if judged.judgement.verdict == "timeout" and is_doubtful:
            return replace(judged, is_final=False)
        return judged

    def judge_alone(self, candidate: Candidate) -> Judged:
        """The final verdict when nothing else runs: the wall limit doubled, and a quarter more CPU time, which a busy
        neighbour on the same core costs."""
        judged, _ = self._once(candidate, alone=True)
        if judged.judgement.verdict == "harness error":
            judged, _ = self._once(candidate, alone=True)
        return judged

    def _once(self, candidate: Candidate, alone: bool) -> tuple[Judged, bool]:
        if isinstance(candidate.answer, Judgement):
            return Judged(candidate, candidate.answer), False
        run = _LimitedRun(self._run, self._timeout, alone)
        start = time.monotonic()
        try:
            judgement = self._suite.judge(candidate.problem, candidate.answer, run)
        except UNJUDGEABLE as error:
            judgement = unjudgeable(error)
        return Judged(candidate, judgement, time.monotonic() - start), run.was_busy


class _LimitedRun:
    """The sandbox for one answer. was_busy: a run of it timed out while the machine was busy."""

    def __init__(self, run: Run, timeout: float | None, alone: bool) -> None:
        self._run, self._timeout, self._alone = run, timeout, alone
        self.was_busy = False

    def __call__(self, job: Job) -> RunResult:
        build_limits = _roomier(job.build_limits) if self._alone else job.build_limits
        result = self._run(replace(job, limits=self._limits(job.limits), build_limits=build_limits))
        if result.status == "timeout" and _is_busy(result):
            self.was_busy = True
        return result

    def _limits(self, limits: Limits) -> Limits:
        if self._timeout is not None:
            limits = replace(limits, cpu_seconds=self._timeout, wall_seconds=None)
        return _roomier(limits) if self._alone else limits


def _roomier(limits: Limits) -> Limits:
    return replace(limits, cpu_seconds=1.25 * limits.cpu_seconds, wall_seconds=2 * limits.wall)


def unjudgeable(error: BaseException) -> Judgement:
    """The harness error that one of `UNJUDGEABLE` amounts to."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return Judgement("harness error", f"the suite cannot judge this answer: {reason}")


def _is_busy(result: RunResult) -> bool:
    waited = result.waited_seconds > WAITED_SHARE * result.wall_seconds
    return waited or os.getloadavg()[0] > BUSY_LOAD * (os.cpu_count() or 1)


class JudgingLoop:
    """Judges candidates in threads as they come and hands every verdict to `record`, from several threads at a time.
    abort: ends at once what runs in the sandbox."""

    def __init__(
        self,
        judge: Judge,
        workers: int,
        record: Callable[[Judged], None],
        abort: Callable[[], None] = lambda: None,
    ) -> None:
        self._judge = judge
        self._abort = abort
        self._workers = workers
        self._record = record
        self._slots = threading.Semaphore(4 * workers)  # candidates in memory: they may be large
        self._doubtful: list[Candidate] = []
        self._failure: BaseException | None = None

    def run(self, candidates: Iterable[Candidate]) -> None:
        """Judge them all. Whatever ends it early (Ctrl-C, an error of `candidates`, of the sandbox or of `record`) is
        raised here; the candidates that have no verdict by then are recorded without one."""
        executor = ThreadPoolExecutor(self._workers, thread_name_prefix="judge")
        try:
            for candidate in candidates:
                self._raise_failure()
                self._slots.acquire()
                executor.submit(self._judge_one, candidate).add_done_callback(partial(self._finish, candidate))
            executor.shutdown(wait=True)
            self._raise_failure()
            for candidate in sorted(self._doubtful, key=lambda each: (each.problem.task_id, each.index)):
                self._record(self._judge.judge_alone(candidate))
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            self._abort()
            raise
        finally:
            executor.shutdown()  # the sandbox is closed after this: no thread may be left in it

    def _judge_one(self, candidate: Candidate) -> None:
        judged = self._judge.judge(candidate)
        if not judged.is_final:
            self._doubtful.append(candidate)
        self._record(judged)

    def _finish(self, candidate: Candidate, future: "Future[None]") -> None:
        self._slots.release()
        if future.cancelled():
            self._record(Judged(candidate, Judgement("harness error", "interrupted"), is_final=False))
        elif future.exception() is not None:
            self._failure = future.exception()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
