"""A review for people, for programs, and for those that show findings beside the code (SARIF)."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from codemill import __version__
from codemill.agent.workflows.review import SEVERITIES, Finding, Review
from codemill.agent.workflows.visible import visible

SARIF_LEVEL = {"low": "note", "medium": "warning", "high": "error", "critical": "error"}
# As GitHub reads `security-severity`: a number from 0 to 10.
SCORE = {"low": "3.0", "medium": "5.5", "high": "8.0", "critical": "9.5"}
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def text_lines(review: Review) -> Iterator[str]:
    """The findings, the gravest first."""
    for each in review.findings:
        yield visible(f"{each.severity:8} {each.file}:{each.line}  {each.title}")
        yield from (f"         {line}" for line in visible(each.detail).split("\n"))
        if each.suggestion:
            yield from (f"         > {line}" for line in visible(each.suggestion).split("\n"))


def summary_lines(review: Review) -> Iterator[str]:
    """How much was looked at, and what was left out."""
    counts = Counter(each.severity for each in review.findings)
    kinds = ", ".join(f"{counts[severity]} {severity}" for severity in reversed(SEVERITIES) if counts[severity])
    yield f"{len(review.findings)} findings{f' ({kinds})' if kinds else ''} in {review.num_files} files"
    if review.dropped:
        yield f"{len(review.dropped)} findings left out, since they are not about changed lines"
    if review.skipped:
        yield "not looked at: " + ", ".join(f"{visible(path)} ({why})" for path, why in review.skipped.items())
    for names, why in review.failed.items():
        yield f"NOT REVIEWED: {visible(names)}: {visible(why)}"


def json_object(review: Review) -> dict[str, Any]:
    return {
        "findings": [asdict(each) for each in review.findings],
        "files": review.num_files,
        "dropped": review.dropped,
        "skipped": review.skipped,
        "not_reviewed": review.failed,
        "tokens": review.tokens,
    }


def sarif_object(review: Review) -> dict[str, Any]:
    """SARIF 2.1.0, with a rule for each severity."""
    notices = [f"not reviewed: {names}: {why}" for names, why in review.failed.items()]
    invocation = {
        "executionSuccessful": not review.failed,
        "toolExecutionNotifications": [{"level": "error", "message": {"text": text}} for text in notices],
    }
    rules = [_rule(severity) for severity in SEVERITIES]
    driver = {"name": "codemill agent review", "semanticVersion": __version__, "rules": rules}
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "columnKind": "unicodeCodePoints",
        "results": [_result(each) for each in review.findings],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(severity: str) -> dict[str, Any]:
    return {
        "id": f"review-{severity}",
        "shortDescription": {"text": f"A finding of {severity} severity"},
        "defaultConfiguration": {"level": SARIF_LEVEL[severity]},
        "properties": {"security-severity": SCORE[severity]},
    }


def _result(finding: Finding) -> dict[str, Any]:
    parts = [finding.title, finding.detail, *([f"Suggestion: {finding.suggestion}"] if finding.suggestion else [])]
    place = {
        "artifactLocation": {"uri": quote(os.fsencode(finding.file))},
        "region": {"startLine": max(finding.line, 1)},
    }
    return {
        "ruleId": f"review-{finding.severity}",
        "ruleIndex": SEVERITIES.index(finding.severity),
        "level": SARIF_LEVEL[finding.severity],
        "message": {"text": "\n\n".join(parts)},
        "locations": [{"physicalLocation": place}],
    }
