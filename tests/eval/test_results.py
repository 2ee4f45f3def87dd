"""Files of a run directory: what is written is what is read, whatever was in it and however the run ended."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.errors import CodemillError
from codemill.eval.results import (
    PromptRecord,
    RunConfiguration,
    RunResults,
    SampleLog,
    SampleRecord,
    data_sha256,
    problem_results,
    read_prompts,
    versions,
    write_prompts,
    write_results,
)
from codemill.eval.scores import score

RECORD = SampleRecord("HumanEval/0", 0, 7, "raw", "done", False, "failed", "AssertionError", None, 0.5)
NASTY = 'a\0b\ud800c\udfff\u2028\x85\r\n"\\</script>'


def test_a_sample_survives_the_round_trip(tmp_path: Path) -> None:
    records = [RECORD, replace(RECORD, index=1, raw=NASTY, completion=NASTY * 2, detail=NASTY, seed=None, score=0.25)]
    log = SampleLog(tmp_path / "samples.jsonl")
    for record in records:
        log.append(record)
    assert SampleLog(log.path).read().records == records
    assert log.path.read_bytes().count(b"\n") == 2


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    log = SampleLog(tmp_path_factory.mktemp("log") / "samples.jsonl")
    log.append(replace(RECORD, raw=text, task_id=text))
    (read,) = log.read().records
    assert (read.raw, read.task_id) == (text, text)


def test_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert SampleLog(tmp_path / "samples.jsonl").read().records == []


def test_an_unfinished_last_line_is_left_out_and_replaced(tmp_path: Path) -> None:
    log = SampleLog(tmp_path / "samples.jsonl")
    log.append(RECORD)
    log.append(replace(RECORD, index=1))
    whole = log.path.read_bytes()
    first_line = whole.index(b"\n") + 1
    for cut in range(first_line, len(whole)):
        log.path.write_bytes(whole[:cut])
        contents = SampleLog(log.path).read()
        kept = 2 if cut == len(whole) - 1 else 1  # only its line end is missing: the record is whole
        assert len(contents.records) == kept
        assert ("line 2: unfinished" in contents.note) == (kept == 1 and cut > first_line)
        SampleLog(log.path).append(replace(RECORD, index=2))
        again = SampleLog(log.path).read()
        assert [record.index for record in again.records] == [*range(kept), 2]
        assert again.note == ""


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[1]\n", "not a JSON object"),
        (b"\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (json.dumps({**vars(RECORD), "verdict": "passed"}).encode() + b"\n", "verdict 'passed' is none of"),
        (json.dumps({**vars(RECORD), "index": "0"}).encode() + b"\n", "'index' cannot be '0'"),
        (json.dumps({**vars(RECORD), "index": True}).encode() + b"\n", "'index' cannot be 'True'"),
        (json.dumps({"task_id": "x"}).encode() + b"\n", "'index' is missing"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, why: str) -> None:
    log = SampleLog(tmp_path / "samples.jsonl")
    log.append(RECORD)
    log.path.write_bytes(log.path.read_bytes() + line)
    log.append(RECORD)
    with pytest.raises(CodemillError, match=f"samples.jsonl, line 2: .*{why}"):
        log.read()


def test_a_sample_written_again_replaces_the_first(tmp_path: Path) -> None:
    log = SampleLog(tmp_path / "samples.jsonl")
    for record in (replace(RECORD, verdict="harness error"), replace(RECORD, index=1), replace(RECORD, verdict="ok")):
        log.append(record)
    assert [(record.index, record.verdict) for record in log.read().records] == [(0, "ok"), (1, "failed")]


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    log = SampleLog(tmp_path / "samples.jsonl")

    def write(start: int) -> None:
        for index in range(start, start + 50):
            log.append(replace(RECORD, index=index, raw="x" * 5000))

    threads = [threading.Thread(target=write, args=(50 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(record.index for record in log.read().records) == list(range(200))


def make_results() -> RunResults:
    samples = [
        replace(RECORD, index=1, verdict="ok"),
        RECORD,
        replace(RECORD, task_id="HumanEval/1", verdict="harness error"),
    ]
    problems = problem_results(["HumanEval/0", "HumanEval/1", "HumanEval/2"], samples)
    return RunResults(
        suite="humaneval",
        title="HumanEval",
        configuration=RunConfiguration("model", "random:tiny", style="base", sampling={"temperature": 0.2}, seed=3),
        scores=score({problem.task_id: problem.verdicts for problem in problems}, ks=(1, 2)),
        problems=problems,
        versions=versions(),
        data="HumanEval.jsonl.gz",
        summary={"edit similarity": 0.5},
    )


def test_results_survive_the_round_trip(tmp_path: Path) -> None:
    results = make_results()
    assert write_results(tmp_path, results) == tmp_path / "results.json"
    assert RunResults.load(tmp_path) == results
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_the_printed_object_has_what_programs_rely_on() -> None:
    printed = make_results().to_json()
    assert printed["suite"] == "humaneval"
    assert printed["n"] == 3
    assert printed["pass@1"] == 0.5
    assert printed["pass@k"] == {"1": 0.5, "2": 1.0}
    assert printed["verdicts"]["ok"] == 1
    assert printed["verdicts"]["harness error"] == 1
    assert printed["excluded"] == {"HumanEval/1": "harness error in its sample", "HumanEval/2": "no sample"}
    assert printed["problems"][0] == {"task_id": "HumanEval/0", "verdicts": ("failed", "ok"), "scores": ()}
    assert printed["interval"]["low"] < 0.5 < printed["interval"]["high"]


def test_a_run_without_a_score_can_be_written_and_read(tmp_path: Path) -> None:
    problems = problem_results(["a"], [])
    results = replace(make_results(), problems=problems, scores=score({"a": ()}))
    write_results(tmp_path, results)
    loaded = RunResults.load(tmp_path)
    assert loaded.pass_at_1 is None
    assert loaded.to_json()["pass@1"] is None


def test_an_incomplete_or_foreign_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CodemillError, match=r"has no results.json: give a run directory"):
        RunResults.load(tmp_path)
    SampleLog(tmp_path / "samples.jsonl").append(RECORD)
    with pytest.raises(CodemillError, match=r"has no results.json: the run is not complete"):
        RunResults.load(tmp_path)
    for text in ("{", "[]", "{}", '{"format": 99}', '"x"', json.dumps({**make_results().to_json(), "problems": [1]})):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(CodemillError, match=r"results.json is not what a run writes"):
            RunResults.load(tmp_path)


def test_prompts_survive_the_round_trip(tmp_path: Path) -> None:
    assert read_prompts(tmp_path) == {}
    write_prompts(tmp_path, [PromptRecord("a", NASTY), PromptRecord("b", "")])
    assert read_prompts(tmp_path) == {"a": NASTY, "b": ""}
    (tmp_path / "prompts.jsonl").write_text('{"task_id": "a", "prompt": 1}\n')
    with pytest.raises(CodemillError, match=r"prompts.jsonl, line 1: .*'prompt' cannot be '1'"):
        read_prompts(tmp_path)


def test_the_hash_of_a_folder_depends_on_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    one = data_sha256(tmp_path)
    assert data_sha256(tmp_path / "a") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    (tmp_path / "a").rename(tmp_path / "b")
    two = data_sha256(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({one, two, data_sha256(tmp_path)}) == 3
