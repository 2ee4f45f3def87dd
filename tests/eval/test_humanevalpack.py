"""HumanEvalPack: six languages, fixing and writing; programs made of every kind of answer."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.eval.brace_text import code_only, end_of_block, open_blocks, without_block
from codemill.eval.humanevalpack import LANGUAGES, HumanEvalPack
from codemill.eval.suite import Answer, Problem, Run, SuiteOptions
from codemill.sandbox.job import Job, Limits
from codemill.sandbox.languages import missing
from codemill.sandbox.result import RunResult
from eval.verdicts import judge_all, verdicts

TOOLCHAINS = {"js": "javascript", "java": "java", "go": "go", "cpp": "cpp", "rust": "rust"}
# Tasks whose own solution needs what is not there: a package, a crate, boost.
UNSOLVED = {
    "js": {"162"},
    "rust": {"32", "38", "50", "53", "91", "162"},
    "cpp": {"22", "137"},
    "go": {"95"},  # its own solution depends on the order of a map
    "java": set[str](),
}


# Tasks whose own solution goes on after the function.
GOES_ON = {"go": {"72"}, "cpp": {"94"}, "rust": {"137", "145"}}


def load(shared_data: Path, language: str, variant: str | None = None) -> tuple[HumanEvalPack, list[Problem]]:
    if lack := missing(TOOLCHAINS.get(language, "python")):
        pytest.skip(lack)
    suite = HumanEvalPack(SuiteOptions(variant=variant, language=language))
    loaded = suite.load(shared_data / "humanevalpack")
    assert len(loaded) == 164
    return suite, [problem for problem in loaded if number(problem) not in UNSOLVED.get(language, ())]


def number(problem: Problem) -> str:
    return problem.task_id.rpartition("/")[2]


def sample(problems: list[Problem], *numbers: str) -> list[Problem]:
    return [problem for problem in problems if number(problem) in numbers]


def test_python_gold_solutions_pass_and_buggy_ones_fail(shared_data: Path, run: Run) -> None:
    suite, loaded = load(shared_data, "python")
    assert verdicts(suite, loaded, suite.gold, run) == {"ok": 164}

    def hurried(job: Job) -> RunResult:
        return run(replace(job, limits=Limits(cpu_seconds=0.5)))

    assert "ok" not in verdicts(suite, loaded, suite.wrong, hurried)


@pytest.mark.slow
def test_no_buggy_python_solution_passes(shared_data: Path, run: Run) -> None:
    suite, loaded = load(shared_data, "python")
    assert "ok" not in verdicts(suite, loaded, suite.wrong, run)


@pytest.mark.parametrize("language", TOOLCHAINS)
def test_gold_solutions_pass_and_buggy_ones_fail(shared_data: Path, run: Run, language: str) -> None:
    suite, loaded = load(shared_data, language)
    chosen = sample(loaded, "23", "33") if language != "js" else loaded[::8]
    judged = judge_all(suite, chosen, suite.gold, run)
    assert {judgement.verdict for judgement in judged.values()} == {"ok"}, judged
    assert "ok" not in verdicts(suite, chosen[:1], suite.wrong, run)


@pytest.mark.slow
@pytest.mark.parametrize("language", TOOLCHAINS)
def test_all_gold_solutions_pass(shared_data: Path, run: Run, language: str) -> None:
    suite, loaded = load(shared_data, language)
    judged = judge_all(suite, loaded, suite.gold, run)
    assert {task_id: judgement for task_id, judgement in judged.items() if judgement.verdict != "ok"} == {}
    assert "ok" not in verdicts(suite, loaded, suite.wrong, run)


def chat_answers(problem: Problem) -> Iterator[str]:
    """The suite's own solution as models write it: with the prompt, alone, its body alone, and with a main part."""
    fields = problem.fields
    language, prompt, body = fields["language"], fields["prompt"].rstrip(), fields["canonical_solution"]
    function = f"{fields['declaration'].rstrip().splitlines()[-1]}\n{body}"
    if language == "java":
        function = function.rstrip().removesuffix("}")
    main = {
        "python": "if __name__ == '__main__':\n    exit()",
        "js": "console.log(1);\nmodule.exports = {};",
        "java": "class Main { public static void main(String[] a) { System.exit(0); } }",
        "go": "func main() { panic(1) }",
        "cpp": "int main() { return 0; }",
        "rust": "fn main() { panic!(); }",
    }[language]
    package = "package main\n\n" if language == "go" else ""
    for code in (f"{prompt}\n{body}", function, body, f"{package}{prompt}\n{body}\n{main}\n"):
        yield f"Look {{ here:\n\n```{language}\n{code}\n```\nThis should do }}."


@pytest.mark.parametrize("language", LANGUAGES)
def test_chat_answers_of_all_forms(shared_data: Path, run: Run, language: str) -> None:
    suite, loaded = load(shared_data, language)
    chosen = sample(loaded, "0", "1") if language in ("python", "js") else sample(loaded, "2")
    for problem in chosen:
        for raw in chat_answers(problem):
            judgement = suite.judge(problem, suite.clean(problem, raw, "chat"), run)
            assert judgement.verdict == "ok", (raw, judgement)


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_many_chat_answers_of_all_forms(shared_data: Path, run: Run, language: str) -> None:
    suite, loaded = load(shared_data, language)
    for problem in loaded[5::16]:
        for raw in chat_answers(problem):
            judgement = suite.judge(problem, suite.clean(problem, raw, "chat"), run)
            assert judgement.verdict == "ok", (problem.task_id, raw, judgement)


@pytest.mark.parametrize("language", LANGUAGES)
def test_continuations_end_with_the_function(shared_data: Path, language: str) -> None:
    suite, loaded = load(shared_data, language)
    for problem in loaded:
        gold = problem.fields["canonical_solution"].rstrip()
        answer = suite.clean(problem, f"{gold}\n\nint more() {{ }}\n", "base")
        assert not answer.whole
        assert answer.text.strip()
        assert gold.startswith(answer.text.rstrip())
        assert answer.text.rstrip() == gold or number(problem) in GOES_ON.get(language, ())


NO_CODE = ("", "\0", "\ud800", "}", "{" * 3000, "return 1")
EXITS = {
    "python": "    import sys\n    sys.exit(0)\n",
    "js": "  process.exit(0)\n}\n",
    "java": "        System.exit(0);\n        return 0;\n    }\n}\n",
    "go": "    os.Exit(0)\n    return 0\n}\n",
    "cpp": "    exit(0);\n}\n",
    "rust": "    std::process::exit(0);\n}\n",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_that_exit_early_fail(shared_data: Path, run: Run, language: str) -> None:
    suite, loaded = load(shared_data, language)
    (problem,) = sample(loaded, "2")
    judgement = suite.judge(problem, Answer(EXITS[language]), run)
    assert judgement.verdict == "failed"
    assert "the program exited before its tests ended" in judgement.detail


@pytest.mark.parametrize(
    ("language", "text"),
    [*((language, text) for language in ("python", "js") for text in NO_CODE), ("go", NO_CODE[2]), ("cpp", NO_CODE[1])],
)
def test_answers_that_are_no_code_fail(shared_data: Path, run: Run, language: str, text: str) -> None:
    suite, loaded = load(shared_data, language)
    (problem,) = sample(loaded, "2")
    for whole in (False, True):
        assert suite.judge(problem, Answer(text, whole), run).verdict not in ("ok", "harness error")


def test_a_failure_says_why(shared_data: Path, run: Run) -> None:
    suite, loaded = load(shared_data, "js")
    (problem,) = sample(loaded, "2")
    assert "assertion failed" in suite.judge(problem, Answer("  return 1\n}\n"), run).detail


def test_helpers_are_there_unless_the_answer_has_its_own(shared_data: Path, run: Run) -> None:
    suite, loaded = load(shared_data, "js")
    (problem,) = sample(loaded, "50")
    prompt, body = problem.fields["prompt"], problem.fields["canonical_solution"]
    alone = prompt[prompt.rindex("const decodeShift") :] + body
    for code in (alone, prompt + body):
        answer = suite.clean(problem, f"```javascript\n{code}\n```", "chat")
        assert answer.whole
        assert suite.judge(problem, answer, run).verdict == "ok"


def test_prompts(shared_data: Path) -> None:
    for language in LANGUAGES:
        fix, loaded = load(shared_data, language, "fix")
        problem = loaded[0]
        question = str((fix.prompt(problem, "chat").messages or ())[0]["content"])
        assert problem.fields["buggy_solution"].strip() in question
        assert problem.fields["test"].strip() in question
        assert problem.fields["canonical_solution"].strip() not in question
        base = fix.prompt(problem, "base").text or ""
        assert base.endswith(problem.fields["declaration"].rstrip())
        write = HumanEvalPack(SuiteOptions(variant="synthesize"))
        question = str((write.prompt(problem, "chat").messages or ())[0]["content"])
        assert problem.fields["prompt"].strip() in question
        assert problem.fields["test"].strip() not in question
        assert write.prompt(problem, "base").text == problem.fields["prompt"].rstrip()


def test_options() -> None:
    assert "/python/data/humanevalpack.jsonl" in str(HumanEvalPack().source().url)
    assert "/js/data/humanevalpack.jsonl" in str(HumanEvalPack(SuiteOptions(language="JavaScript")).source().url)
    with pytest.raises(UsageError, match="it has fix and synthesize"):
        HumanEvalPack(SuiteOptions(variant="explain"))
    with pytest.raises(UsageError, match="it has python, js, java, go, cpp, rust"):
        HumanEvalPack(SuiteOptions(language="cobol"))


RECORD: dict[str, Any] = {
    "task_id": "Rust/0",
    "prompt": "fn main(){}\nfn one() -> i32 {\n",
    "declaration": "fn one() -> i32 {\n",
    "canonical_solution": "    1\n}\n",
    "buggy_solution": "    2\n}\n",
    "test": "#[cfg(test)]\nmod tests {\n    #[test]\n    fn test_one() { assert_eq!(super::one(), 1); }\n}\n",
    "entry_point": "one",
}


def test_the_data_tells_the_language(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(RECORD))
    assert HumanEvalPack().load(path)[0].fields["language"] == "rust"
    with pytest.raises(CodemillError, match="line 1: the problem is in rust, not go"):
        HumanEvalPack(SuiteOptions(language="go")).load(path)
    path.write_text(json.dumps({**RECORD, "task_id": 3}))
    assert HumanEvalPack(SuiteOptions(language="rs")).load(path)[0].fields["language"] == "rust"
    with pytest.raises(CodemillError, match="'3' does not tell the language"):
        HumanEvalPack().load(path)


def test_tests_that_nothing_would_call_are_refused(tmp_path: Path) -> None:
    """Else every answer that compiles would pass."""
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({**RECORD, "test": "// #[test] fn test_one() {}\n"}))
    with pytest.raises(CodemillError, match="line 1: 'test' has no test function"):
        HumanEvalPack().load(path)


# Text with braces


def test_comments_and_literals_are_no_code() -> None:
    text = "a { // }\n/* } \n*/ '}' \"}\\\"}\" 'x"
    assert code_only(text, "cpp") == "a {     \n     \n              'x"
    assert code_only("`}${`a", "js").strip() == "a"
    assert code_only("let x: &'a str = '}';", "rust") == "let x: &'a str =    ;"
    assert len(code_only(text, "java")) == len(text)


def test_blocks() -> None:
    assert end_of_block("a } b", depth=1) == 3
    assert end_of_block("{ {} } }") == 6
    assert end_of_block("{ {}") is None
    assert open_blocks("{ { }") == 1
    assert without_block("a int main() { if (x) { } } b", "cpp", r"\bint\s+main\s*\(") == "a  b"
    assert without_block("a // int main() {}", "cpp", r"\bint\s+main\s*\(") == "a // int main() {}"


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "python"])
def test_cleaning_takes_linear_time(shared_data: Path, language: str) -> None:
    """With the square of the length, these would take hours."""
    suite, loaded = load(shared_data, language)
    fields = loaded[0].fields
    pieces = ["{", "}", "/*", "//", '"', "'", "\\", "`", "(", "use x\n", "import (\n", "fn ", "\n", " "]

    def keep(job: Job) -> RunResult:
        return RunResult("failed", detail=str(len(job.files)))

    for piece in [*pieces, f"{fields['entry_point']}("]:
        raw = piece * (150_000 // len(piece))
        assert suite.clean(loaded[0], raw, "base").text in raw + "\n}\n}"
        assert suite.clean(loaded[0], f"```\n{raw}", "chat").text
        for whole in (False, True):
            assert suite.judge(loaded[0], Answer(raw, whole), keep).verdict == "failed"
