"""HumanEval-infilling: four files, one program."""

from pathlib import Path

import pytest

from codemill.errors import UsageError
from codemill.eval.infilling import Infilling
from codemill.eval.suite import Answer, Problem, Run, SuiteOptions
from eval.verdicts import verdicts

FILES = {"single": 1033, "multi": 5815, "span": 1640, "light": 164}


def load(shared_data: Path, variant: str) -> tuple[Infilling, list[Problem]]:
    suite = Infilling(SuiteOptions(variant=variant))
    return suite, suite.load(shared_data / "humaneval_infilling")


def cleaned(suite: Infilling, problem: Problem, raw: str) -> Answer:
    return suite.clean(problem, raw, "fim")


@pytest.mark.parametrize("variant", FILES)
def test_gold_solutions_pass(shared_data: Path, run: Run, variant: str) -> None:
    suite, loaded = load(shared_data, variant)
    assert len(loaded) == FILES[variant]
    chosen = loaded[:: max(1, len(loaded) // 150)]
    assert verdicts(suite, chosen, suite.gold, run) == {"ok": len(chosen)}


@pytest.mark.slow
@pytest.mark.parametrize("variant", FILES)
def test_all_gold_solutions_pass(shared_data: Path, run: Run, variant: str) -> None:
    suite, loaded = load(shared_data, variant)
    assert verdicts(suite, loaded, suite.gold, run) == {"ok": len(loaded)}


@pytest.mark.parametrize("variant", FILES)
def test_cleaning_leaves_gold_solutions_alone(shared_data: Path, variant: str) -> None:
    suite, loaded = load(shared_data, variant)
    for problem in loaded:
        gold = suite.gold(problem)
        assert gold is not None
        assert cleaned(suite, problem, gold.text) == gold
        assert cleaned(suite, problem, gold.text + "<|endoftext|>def x") == gold


def test_one_line_where_one_is_missing(shared_data: Path) -> None:
    suite, loaded = load(shared_data, "single")
    for raw in ("    x = 1", "    x = 1\n    y = 2\n", "\n\n    x = 1\n", "    x = 1\r\n    y", "    x = 1<|fim_pad|>"):
        assert cleaned(suite, loaded[0], raw) == Answer("    x = 1\n")
    assert cleaned(suite, loaded[0], "") == Answer("\n")
    assert cleaned(suite, loaded[0], "x" * 10_000_000) == Answer("x" * 10_000_000 + "\n")


def test_several_lines_and_spans_are_taken_as_they_are(shared_data: Path) -> None:
    for variant in ("multi", "span", "light"):
        suite, loaded = load(shared_data, variant)
        assert cleaned(suite, loaded[0], "\n a\n\n b ") == Answer("\n a\n\n b ")


def test_the_hole_lies_between_prefix_and_suffix(shared_data: Path) -> None:
    suite, loaded = load(shared_data, "span")
    prompt = suite.prompt(loaded[5], "fim")
    assert (prompt.prefix, prompt.suffix) == (loaded[5].fields["prompt"], loaded[5].fields["suffix"])
    assert prompt.text is None
    assert prompt.messages is None


def test_wrong_fillings_fail(shared_data: Path, run: Run) -> None:
    suite, loaded = load(shared_data, "single")
    chosen = loaded[::60]
    wrong = {
        "    raise SystemExit(0)\n": "failed",
        "    import os; os._exit(0)\n": "failed",
        "    return '\0'\n": "failed",
        "\ud800": "failed",
    }
    for text, verdict in wrong.items():
        answer = Answer(text)
        assert verdicts(suite, chosen[:4], lambda _, answer=answer: answer, run) == {verdict: 4}  # type: ignore[misc]


def test_a_whole_program_takes_the_place_of_all_three(shared_data: Path, run: Run) -> None:
    suite, loaded = load(shared_data, "light")
    fields = loaded[0].fields
    whole = Answer(fields["prompt"] + fields["canonical_solution"] + fields["suffix"], whole=True)
    assert suite.judge(loaded[0], whole, run).verdict == "ok"


def test_variants() -> None:
    assert str(Infilling().source().url).endswith("/HumanEval-SingleLineInfilling.jsonl.gz")
    for variant, name in (("multi", "MultiLine"), ("span", "RandomSpan"), ("light", "RandomSpanInfillingLight")):
        assert name in str(Infilling(SuiteOptions(variant=variant)).source().url)
    with pytest.raises(UsageError, match="it has single, multi, span, light"):
        Infilling(SuiteOptions(variant="double"))
    with pytest.raises(UsageError, match="in Python alone"):
        Infilling(SuiteOptions(language="java"))
