"""The report of a run, or of two beside each other, as one HTML page that needs nothing else.

The page's frame, style and script are in `web/`. Text of models and data files reaches it in two ways only: escaped by
`escaped`, or as JSON that the script puts in place as text; the page's own policy (CSP) admits no other script.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from codemill import __version__
from codemill.eval.compare import compare, run_name
from codemill.eval.report_rows import diff_rows, run_rows
from codemill.eval.report_sections import configurations, difference, escaped, summary
from codemill.eval.results import RunResults, SampleLog, read_prompts, samples_path
from codemill.eval.scores import LEVEL

_INTERVALS = f"Intervals ({LEVEL:.0%}) answer where a score would lie if the problems were drawn anew from their kind."


def write_report(directory: Path) -> Path:
    """Write `report.html` for the run in `directory`, and return its path.

    Long texts are shortened, with a note. Raises CodemillError if the run is not complete or its files are broken.
    """
    results = RunResults.load(directory)
    contents = SampleLog(samples_path(directory)).read()
    rows = run_rows(results, contents.records, read_prompts(directory))
    data = {
        "kind": "run",
        "files": "samples.jsonl",
        "rows": rows,
        "scored": any(row["score"] is not None for row in rows),
        "several": any(len(row["verdicts"]) > 1 for row in rows),
    }
    name = results.title or results.suite
    return _write(
        directory / "report.html",
        data,
        title=escaped(f"{name}: {run_name(results)}"),
        eyebrow="Codemill evaluation",
        heading=escaped(" ".join(filter(None, [name, results.variant, results.language]))),
        subtitle=escaped(_subtitle(results)),
        summary=summary(results, [contents.note] if contents.note else []),
        table_title="Problems",
    )


def write_diff(directory_a: Path, directory_b: Path, path: Path) -> Path:
    """Write the page of the run in `directory_b` against that in `directory_a`: the difference, and every problem
    whose verdicts changed with both completions. Raises CodemillError as `write_report` and `compare` do."""
    results = RunResults.load(directory_a), RunResults.load(directory_b)
    comparison = compare(*results)
    logs = tuple(SampleLog(samples_path(directory)).read() for directory in (directory_a, directory_b))
    prompts = {**read_prompts(directory_b), **read_prompts(directory_a)}
    rows = diff_rows(results, (logs[0].records, logs[1].records), prompts)
    names = [comparison.a_name, comparison.b_name]
    data = {"kind": "diff", "files": f"{directory_a.name} and {directory_b.name}", "rows": rows, "names": names}
    notes = [*comparison.warnings, *(log.note for log in logs if log.note)]
    return _write(
        path,
        data,
        title=escaped(f"{comparison.suite}: {names[1]} against {names[0]}"),
        eyebrow="Codemill comparison",
        heading=escaped(f"{comparison.suite}: B against A"),
        subtitle=f"A: {escaped(names[0])}<br>B: {escaped(names[1])}",
        summary=difference(comparison, notes) + configurations(results),
        table_title="Problems whose verdicts changed",
    )


def _write(path: Path, data: Mapping[str, Any], **parts: str) -> Path:
    web = files("codemill.eval") / "web"
    frame, style, script = ((web / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    page = Template(frame).substitute(
        parts,
        version=__version__,
        style=style,
        style_hash=_policy_hash(style),
        script=script,
        script_hash=_policy_hash(script),
        files=escaped(str(data["files"])),
        data=_embedded(data),
        footer=f"Made by codemill {__version__}. {_INTERVALS}",
    )
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _embedded(value: Any) -> str:
    """JSON in ASCII that no HTML parser can take for anything but text."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy_hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _subtitle(results: RunResults) -> str:
    configuration = results.configuration
    samples = configuration.samples_per_problem
    parts = [run_name(results), configuration.style and f"style {configuration.style}"]
    parts += [f"{len(results.problems)} problems, {samples} sample{'s' if samples > 1 else ''} each", results.finished]
    return ", ".join(filter(None, parts))
