"""Reports are read the way a browser reads them: nothing that a model wrote may become more than text."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from codemill.errors import CodemillError
from codemill.eval.report_html import write_diff, write_report
from codemill.eval.report_rows import LONGEST_TEXT, SHORTEST_TEXT, Shortener
from codemill.eval.results import (
    PromptRecord,
    RunConfiguration,
    RunResults,
    SampleLog,
    SampleRecord,
    problem_results,
    write_prompts,
    write_results,
)
from codemill.eval.scores import score
from codemill.sandbox.result import Status

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    '<img src="x" onerror="alert(1)">',
    "\" onmouseover='alert(1)' x=\"",
    "&lt;b&gt; &amp; ${title} $title $$",
    "lone \ud800 and \udfff, NUL \0, escape \x1b[31m, \u202e reversed, \u2028 line",
    "a\r\nb\rc\x85d",
)


class Page(HTMLParser):
    """The elements of a page, the text of its scripts and all its visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        self.data: dict[str, Any] = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


def sample(task_id: str, verdict: Status, completion: str = "pass", index: int = 0, **changes: Any) -> SampleRecord:
    detail = "" if verdict == "ok" else "Traceback\nAssertionError"
    return replace(
        SampleRecord(task_id, index, 1, completion, completion, False, verdict, detail, None, 0.1), **changes
    )


def make_run(directory: Path, samples: Sequence[SampleRecord], model: str = "m", **changes: Any) -> Path:
    directory.mkdir()
    log = SampleLog(directory / "samples.jsonl")
    for record in samples:
        log.append(record)
    task_ids = list(dict.fromkeys(record.task_id for record in samples))
    write_prompts(directory, [PromptRecord(task_id, f"prompt of {task_id}") for task_id in task_ids])
    problems = problem_results(task_ids, samples)
    scores = score({problem.task_id: problem.verdicts for problem in problems})
    results = RunResults("humaneval", RunConfiguration("model", model, style="base"), scores, problems, "HumanEval")
    write_results(directory, replace(results, **changes))
    return directory


def check_harmless(page: Page) -> None:
    """Only the page's own two scripts, no handler, nothing fetched from anywhere."""
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 2
    assert tags.count("style") == 1
    assert not {"img", "iframe", "object", "link", "form", "base"} & set(tags)
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        assert attributes.get("src") is None
        assert attributes.get("href", "#") == "#problems" or attributes.get("href") is None
    assert "@import" not in page.source
    assert "url(" not in page.source


def test_what_a_model_wrote_stays_text(tmp_path: Path) -> None:
    nasty = "\n".join(HOSTILE)
    records = [sample(text, "failed", text, raw=nasty, detail=text, index=i) for i, text in enumerate(HOSTILE)]
    settings = {"title": HOSTILE[0], "variant": HOSTILE[2], "language": HOSTILE[5], "data": HOSTILE[4]}
    page = Page(write_report(make_run(tmp_path / "run", records, model=HOSTILE[3], **settings)))
    check_harmless(page)
    assert [row["id"] for row in page.data["rows"]] == list(HOSTILE)
    assert [row["samples"][0]["completion"] for row in page.data["rows"]] == list(HOSTILE)
    assert page.data["rows"][0]["samples"][0]["raw"] == nasty
    for text in (HOSTILE[0], HOSTILE[2], HOSTILE[3], HOSTILE[4]):  # title, variant, model, data
        assert text in page.text
    assert "lone \\ud800" in page.text


def test_the_policy_of_the_page_names_its_own_script_and_style(tmp_path: Path) -> None:
    import base64
    import hashlib

    page = Page(write_report(make_run(tmp_path / "run", [sample("a", "ok")])))
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    style = page.source[page.source.index("<style>") + 7 : page.source.index("</style>")]
    for name, text in (("script-src", page.scripts[1]), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")


def test_the_summary_has_the_figures(tmp_path: Path) -> None:
    verdicts: list[Status] = ["ok"] * 30 + ["failed"] * 8 + ["timeout"] * 2 + ["harness error"]
    records = [sample(f"HumanEval/{i}", verdict) for i, verdict in enumerate(verdicts)]
    page = Page(write_report(make_run(tmp_path / "run", records, summary={"edit similarity": 0.8125})))
    text = re.sub(r"\s+", " ", page.text)
    assert "75.0 %pass@195% interval 59.8 to 85.8 %, 40 problems" in text
    assert "failed819.5 %" in text
    assert "Excluded from the score: 1 problem" in text
    assert "HumanEval/40: harness error in its sample" in text
    assert "edit similarity0.8125" in text
    assert "stylebase" in text


def test_a_run_without_a_score_has_a_report(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run", [sample("a", "harness error")])))
    assert "there is no score" in page.text
    assert page.data["rows"][0]["rate"] is None


def test_a_problem_without_samples_or_prompt_has_a_row(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [sample("a", "ok")], problems=problem_results(["a", "b"], [sample("a", "ok")]))
    (run / "prompts.jsonl").unlink()
    rows = Page(write_report(run)).data["rows"]
    assert [row["keys"] for row in rows] == [["ok"], ["no sample"]]
    assert [row["prompt"] for row in rows] == [None, None]


def test_samples_of_a_problem_are_in_order_and_averaged(tmp_path: Path) -> None:
    records = [
        sample("a", "ok", index=2, score=1.0, seconds=0.3),
        sample("a", "failed", index=0, score=0.0, seconds=0.1),
        sample("a", "harness error", index=1),
    ]
    page = Page(write_report(make_run(tmp_path / "run", records)))
    (row,) = page.data["rows"]
    assert [entry["index"] for entry in row["samples"]] == [0, 1, 2]
    assert (row["rate"], row["score"]) == (0.5, 0.5)
    assert row["seconds"] == pytest.approx(0.5 / 3)
    assert row["error"] == "AssertionError"
    assert page.data["several"]
    assert page.data["scored"]


def test_ten_megabytes_are_shortened_and_the_reader_is_told(tmp_path: Path) -> None:
    huge = "<" * 5_000_000 + "\0" * 5_000_000
    start = time.monotonic()
    path = write_report(make_run(tmp_path / "run", [sample("a", "failed", huge, raw=huge + "!", detail=huge)]))
    assert time.monotonic() - start < 20
    assert path.stat().st_size < 1_000_000
    (entry,) = Page(path).data["rows"][0]["samples"]
    assert entry["raw_cut"] == len(huge) + 1 - LONGEST_TEXT
    assert entry["completion_cut"] == len(huge) - LONGEST_TEXT
    assert "characters left out" in entry["raw"]
    assert entry["raw"].endswith("!")


def test_a_page_of_many_samples_stays_small() -> None:
    shorten = Shortener.fitting([15_000] * 100_000)
    assert shorten.longest < 500
    assert Shortener.fitting([10**7] * 10**5).longest == SHORTEST_TEXT
    assert Shortener.fitting([15_000] * 100).longest == LONGEST_TEXT
    assert Shortener(10)("0123456789") == ("0123456789", 0)
    text, cut = Shortener(8)("0123456789")
    assert (text.startswith("012345\n"), text.endswith("\n89"), cut) == (True, True, 2)


def test_a_torn_last_line_is_noted_and_an_incomplete_run_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [sample("a", "ok")])
    with (run / "samples.jsonl").open("ab") as file:
        file.write(b'{"task_id": "a", "ind')
    assert "line 2: unfinished, left out" in Page(write_report(run)).text
    (run / "results.json").unlink()
    with pytest.raises(CodemillError, match="the run is not complete"):
        write_report(run)


def test_the_diff_shows_what_changed_and_both_completions(tmp_path: Path) -> None:
    a = make_run(
        tmp_path / "a",
        [
            sample("same", "ok"),
            sample("gained", "failed", "x = 1\ny = 2"),
            sample("lost", "ok", HOSTILE[0]),
            sample("other", "failed"),
            sample("error", "harness error"),
            sample("gone", "ok"),
        ],
    )
    b = make_run(
        tmp_path / "b",
        [
            sample("same", "ok", "another text"),
            sample("gained", "ok", "x = 1\ny = 3"),
            sample("lost", "timeout", HOSTILE[2]),
            sample("other", "timeout"),
            sample("error", "ok"),
        ],
        model=HOSTILE[0],
        data_sha256="f" * 64,
    )
    write_diff(a, b, tmp_path / "diff.html")
    page = Page(tmp_path / "diff.html")
    check_harmless(page)
    rows = {row["id"]: row for row in page.data["rows"]}
    assert {task_id: row["keys"] for task_id, row in rows.items()} == {
        "gained": ["gained"],
        "lost": ["lost"],
        "other": ["same score"],
        "error": ["only in B"],
        "gone": ["only in A"],
    }
    (pair,) = rows["gained"]["pairs"]
    assert pair["a"]["lines"] == [[False, "x = 1"], [True, "y = 2"]]
    assert pair["b"]["lines"] == [[False, "x = 1"], [True, "y = 3"]]
    assert rows["gone"]["pairs"][0]["b"] is None
    assert "data sha256 differs: not given in A, ffffffffffff... in B" in page.text
    assert "prompt of lost" in rows["lost"]["prompt"]


def test_a_diff_of_many_samples_shows_those_that_changed(tmp_path: Path) -> None:
    first: list[Status] = ["ok", "failed"] * 20
    a = make_run(tmp_path / "a", [sample("p", verdict, index=i) for i, verdict in enumerate(first)])
    b = make_run(tmp_path / "b", [sample("p", "ok", index=i) for i in range(40)])
    write_diff(a, b, tmp_path / "diff.html")
    (row,) = Page(tmp_path / "diff.html").data["rows"]
    assert [pair["index"] for pair in row["pairs"]] == [2 * i + 1 for i in range(10)]
    assert row["left_out"] == 10


@pytest.mark.parametrize(("a", "b"), [("\n" * 10**6, "x\n" * 10**6), ("a\nb\n" * 10**5, "b\na\n" * 10**5)])
def test_a_diff_of_huge_texts_is_quick(tmp_path: Path, a: str, b: str) -> None:
    runs = [make_run(tmp_path / "a", [sample("p", "ok", a)]), make_run(tmp_path / "b", [sample("p", "failed", b)])]
    start = time.monotonic()
    write_diff(runs[0], runs[1], tmp_path / "diff.html")
    assert time.monotonic() - start < 15


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_shows_the_text_and_runs_none_of_it(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>\ud800"
    records = [sample("a<b", "failed", hostile, detail=hostile), sample("c", "ok", index=0), sample("c", "ok", index=1)]
    path = write_report(make_run(tmp_path / "run", records))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", f"{path.as_uri()}#a%3Cb"], capture_output=True, text=True, timeout=120, check=True
    )
    shown = done.stdout[done.stdout.index("<body") : done.stdout.index('<script type="application/json"')]
    assert "<title>HumanEval: m</title>" in done.stdout
    assert "<img" not in shown
    assert shown.count('class="problem"') == 2
    assert "&lt;img src=x onerror" in shown
    assert "⟨U+D800⟩" in shown
    assert 'aria-expanded="true"' in shown
    assert "2 of 2 problems" in shown
