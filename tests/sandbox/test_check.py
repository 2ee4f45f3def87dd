"""The check of the promises notices a promise that is broken."""

from codemill.sandbox import RunResult, SandboxPool
from codemill.sandbox.check import PROMISES, check


def test_every_promise_holds_in_isolation(pool: SandboxPool) -> None:
    findings = list(check(pool.run))
    assert [finding.promise.name for finding in findings if not finding.holds] == []
    assert len(findings) == len(PROMISES) + 1


def test_a_run_that_contains_nothing_breaks_every_promise() -> None:
    findings = list(check(lambda job: RunResult("ok", 0, stdout="attached to 1\n")))
    assert not any(finding.holds for finding in findings)
    assert {finding.observed for finding in findings} == {"attached to 1"}
