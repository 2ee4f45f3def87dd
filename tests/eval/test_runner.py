"""One evaluation from its answers to its directory: in order or not, interrupted or not."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.eval.answers import GivenAnswers, ModelAnswers, SuiteAnswers
from codemill.eval.generation import Generated, GenerationRequest, sample_seed
from codemill.eval.results import RunConfiguration, RunResults
from codemill.eval.run_directory import open_run
from codemill.eval.runner import evaluate
from codemill.eval.sample_log import SampleLog, read_prompts
from codemill.eval.samples import GivenSample, GivenSamples
from codemill.eval.suite import Answer, Judgement, Problem, Run
from codemill.sandbox.job import Limits
from eval.scripted import Scripted, drawn, evaluation, number, verdicts
from eval.tiny import Notes, TinySuite

# Scores


def test_gold_solutions_pass_and_wrong_ones_do_not() -> None:
    suite = TinySuite()
    gold = evaluate(evaluation(SuiteAnswers(suite.gold)), Notes())
    assert (gold.results.pass_at_1, len(gold.results.problems), gold.directory) == (1.0, 6, None)
    assert evaluate(evaluation(SuiteAnswers(suite.wrong)), Notes()).results.pass_at_1 == 0.0


def test_samples_of_a_model(tmp_path: Path) -> None:
    model = Scripted(number)
    found = evaluate(evaluation(drawn(model, 4), output=tmp_path / "run", ks=(1, 4)), Notes())
    assert verdicts(found)["T/0"] == ("ok",) * 4
    assert verdicts(found)["T/1"] == ("ok", "failed", "failed", "ok")
    assert {k: e.value for k, e in found.results.scores.pass_at.items()} == {1: 0.75, 4: 1.0}
    kept = SampleLog(tmp_path / "run" / "samples.jsonl").read().records
    assert len(kept) == 24
    assert all(record.seed == sample_seed(0, record.task_id, record.index) for record in kept)
    assert {record.raw for record in kept if record.task_id == "T/3"} == {" 3", " -7"}
    assert {record.completion for record in kept if record.task_id == "T/3"} == {"3", "-7"}
    assert read_prompts(tmp_path / "run")["T/0"] == "value = "
    assert RunResults.load(tmp_path / "run") == found.results
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000


def test_neither_order_nor_workers_matter(tmp_path: Path) -> None:
    class Backwards(Scripted):
        def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generated]:
            return super().generate(requests[::-1])

    found = []
    for kind, workers in ((Scripted, 1), (Backwards, 4)):
        model = kind(number)
        found.append(evaluate(evaluation(drawn(model, 3), workers=workers), Notes()).results)
        assert {(r.task_id, r.index): r.seed for r in model.asked} == {
            (f"T/{task}", index): sample_seed(0, f"T/{task}", index) for task in range(6) for index in range(3)
        }
    assert found[0].problems == found[1].problems
    assert found[0].scores == found[1].scores


def test_judging_runs_beside_generation(tmp_path: Path) -> None:
    first_verdict = threading.Event()

    class Waiting(Scripted):
        def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generated]:
            yield Generated(requests[0], number(requests[0]))
            assert first_verdict.wait(20)
            yield from super().generate(requests[1:])

    listener = Notes(on_advance=lambda tally: first_verdict.set())
    assert evaluate(evaluation(drawn(Waiting(number))), listener).results.scores.verdicts["ok"] == 6


def test_what_was_pinned_is_recorded() -> None:
    found = evaluate(evaluation(SuiteAnswers(TinySuite().gold)), Notes())
    pinned = found.results.configuration.more["environment"]
    assert pinned["TZ"] == "UTC"
    assert pinned["PYTHONHASHSEED"] == "0"
    assert pinned["LC_ALL"] == "C.UTF-8"


def test_reasoning_is_not_judged_but_kept(tmp_path: Path) -> None:
    model = Scripted(lambda request: f"<think>\nvalue = 99\n</think>\n\n{request.task_id[2:]}")
    answers = ModelAnswers(TinySuite(), "chat", 1, 0, lambda: model)
    found = evaluate(evaluation(answers, output=tmp_path / "run"), Notes())
    assert found.results.pass_at_1 == 1.0
    assert SampleLog(tmp_path / "run" / "samples.jsonl").read().records[0].raw.startswith("<think>")


def test_a_cut_off_answer_is_noted(tmp_path: Path) -> None:
    class Wordy(Scripted):
        def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generated]:
            for request in requests:
                yield Generated(request, "(", "length", note="the prompt was cut")

    evaluate(evaluation(drawn(Wordy(number)), output=tmp_path / "run"), Notes())
    for record in SampleLog(tmp_path / "run" / "samples.jsonl").read().records:
        assert record.verdict == "failed"
        assert record.detail.endswith("the prompt was cut\nthe answer reached max_tokens")


@pytest.mark.parametrize(
    "text", ["7  # " + "x" * 10_000_000, "'\0'", "'\ud800'", "\udcff", "", "(" * 10_000, "exit(0)"]
)
def test_answers_of_any_kind_get_a_verdict(text: str, tmp_path: Path) -> None:
    given = GivenSamples(
        [GivenSample("T/7", 0, Answer(text), "line 1"), GivenSample("T/0", 0, Answer("0"), "line 2")], []
    )
    found = evaluate(evaluation(GivenAnswers(given, True), 8, output=tmp_path / "run"), Notes())
    assert verdicts(found)["T/7"] == ("ok" if text.startswith("7") else "failed",)
    assert verdicts(found)["T/0"] == ("ok",)


# Missing samples


GIVEN = GivenSamples([GivenSample("T/0", i, Answer("0"), "") for i in range(2)], [])


def test_a_task_without_a_sample_fails() -> None:
    found = evaluate(evaluation(GivenAnswers(GIVEN), 2), Notes())
    assert verdicts(found) == {"T/0": ("ok", "ok"), "T/1": ("failed", "failed")}
    assert found.results.pass_at_1 == 0.5


def test_a_task_without_a_sample_may_be_left_out() -> None:
    found = evaluate(evaluation(GivenAnswers(GIVEN, allow_missing=True), 2), Notes())
    assert verdicts(found) == {"T/0": ("ok", "ok"), "T/1": ()}
    assert (found.results.pass_at_1, dict(found.results.scores.excluded)) == (1.0, {"T/1": "no sample"})


def test_nothing_to_judge() -> None:
    with pytest.raises(UsageError, match="no answer to judge"):
        evaluate(evaluation(SuiteAnswers(lambda problem: None)), Notes())


# Interruption


@pytest.mark.parametrize("strength", [0, 1, 5, 11])
def test_an_interrupted_run_continues_to_the_same_end(tmp_path: Path, strength: int) -> None:
    whole = evaluate(evaluation(drawn(Scripted(number), 2)), Notes())
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation(drawn(Scripted(number, strength), 2), output=path), Notes())
    assert not (path / "results.json").exists()
    kept = SampleLog(path / "samples.jsonl").read().records
    assert len(kept) == strength
    done = sum(record.verdict != "harness error" for record in kept)
    second, listener = Scripted(number), Notes()
    found = evaluate(evaluation(drawn(second, 2), output=path), listener)
    assert len(second.asked) == 12 - strength
    assert listener.stages == [f"judging {done}/12"]
    assert found.results.problems == whole.results.problems
    assert found.results.scores == whole.results.scores


def test_ctrl_c_between_verdicts_loses_none(tmp_path: Path) -> None:
    def interrupt(tally: Any) -> None:
        if tally.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation(drawn(Scripted(number)), output=tmp_path / "run", workers=1), Notes(interrupt))
    assert len(SampleLog(tmp_path / "run" / "samples.jsonl").read().records) >= 3


@pytest.mark.parametrize("unsafe", [False, True])
def test_ctrl_c_does_not_wait_for_a_program_that_never_ends(tmp_path: Path, unsafe: bool) -> None:
    class Endless(TinySuite):
        def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
            long = Limits(cpu_seconds=60)
            return super().judge(problem, answer, lambda job: run(replace(job, limits=long)))

    class Late(Scripted):
        def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generated]:
            yield from super().generate(requests[:3])
            time.sleep(1.0)  # two of the programs are running by now, and one waits
            raise KeyboardInterrupt

    endless = Late(lambda request: "1\nwhile True: pass")
    path, begun = tmp_path / "run", time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation(drawn(endless), suite=Endless(), output=path, unsafe=unsafe), Notes())
    assert time.monotonic() - begun < 15
    kept = SampleLog(path / "samples.jsonl").read().records
    assert [(record.verdict, record.raw) for record in kept] == [("harness error", "1\nwhile True: pass")] * 3


def test_a_line_that_was_being_written_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation(drawn(Scripted(number, 4)), output=path, workers=1), Notes())
    with (path / "samples.jsonl").open("ab") as file:
        file.write(b'{"task_id": "T/5", "ind')
    listener = Notes()
    found = evaluate(evaluation(drawn(Scripted(number)), output=path), listener)
    assert found.results.scores.verdicts["ok"] == 6
    assert "unfinished" in listener.notes[0]


def test_an_error_that_ends_the_run_keeps_what_was_judged(tmp_path: Path) -> None:
    broken = Scripted(number, 4, CodemillError("the server answered 401"))
    with pytest.raises(CodemillError, match="401"):
        evaluate(evaluation(drawn(broken), output=tmp_path / "run"), Notes())
    second = Scripted(number)
    evaluate(evaluation(drawn(second), output=tmp_path / "run"), Notes())
    assert len(second.asked) == 2


def test_the_newest_unfinished_run_with_the_same_configuration_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = ["tiny", "org/model name"]
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation(drawn(Scripted(number, 2)), labels=labels), Notes())
    other = RunConfiguration("model", seed=5)
    fresh = evaluate(evaluation(drawn(Scripted(number)), labels=labels, configuration=other), Notes())
    (begun,) = {path.name for path in Path("codemill-eval").iterdir()} - {
        fresh.directory.name if fresh.directory else ""
    }
    assert begun.startswith("tiny-org-model-name-2")
    continued = evaluate(evaluation(drawn(Scripted(number)), labels=labels), Notes())
    assert continued.directory == Path("codemill-eval") / begun
    again = evaluate(evaluation(drawn(Scripted(number)), labels=labels), Notes())
    assert again.directory not in (continued.directory, fresh.directory)


# The directory


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    evaluate(evaluation(drawn(Scripted(number)), output=path), Notes())
    changed = RunConfiguration("model", seed=1, sampling={"temperature": 0.8})
    with pytest.raises(UsageError, match=r"another run \(.*seed: null there, 1 here.*--overwrite"):
        evaluate(evaluation(drawn(Scripted(number)), output=path, configuration=changed), Notes())
    with pytest.raises(UsageError, match="problems:"):
        evaluate(evaluation(drawn(Scripted(number)), 5, output=path), Notes())


def test_a_complete_run_is_not_touched_but_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run"
    evaluate(evaluation(drawn(Scripted(number)), output=path), Notes())
    before = (path / "results.json").read_bytes()
    with pytest.raises(UsageError, match="holds this run, complete"):
        evaluate(evaluation(drawn(Scripted(number)), output=path), Notes())
    assert (path / "results.json").read_bytes() == before
    (path / "notes.txt").write_text("mine")
    model = Scripted(lambda request: "nonsense")
    replaced = evaluate(evaluation(drawn(model), output=path, overwrite=True), Notes())
    assert (len(model.asked), replaced.results.pass_at_1) == (6, 0.0)
    assert (path / "notes.txt").read_text() == "mine"


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds files but no run"):
            evaluate(evaluation(drawn(Scripted(number)), output=tmp_path, overwrite=overwrite), Notes())
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    with (
        open_run(tmp_path / "run", ["tiny"], {}),
        pytest.raises(CodemillError, match="in use by another run"),
        open_run(tmp_path / "run", ["tiny"], {}),
    ):
        pass
    with open_run(tmp_path / "run", ["tiny"], {}):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"configuration": {}}'])
def test_a_damaged_run_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(CodemillError, match=r"run\.json is damaged"):
        evaluate(evaluation(drawn(Scripted(number)), output=tmp_path), Notes())
