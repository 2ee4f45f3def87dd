"""MultiPL-E: right and wrong answers in every language get their verdict, in the sandbox, with the real tests."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.eval import multipl_e_dialects
from codemill.eval.multipl_e import MultiPlE, debian_packages, language_table
from codemill.eval.multipl_e_dialects import DIALECTS, find_dialect
from codemill.eval.multipl_e_programs import cut
from codemill.eval.suite import Answer, Problem, Run, SuiteOptions
from codemill.sandbox.languages import find_executable
from codemill.sandbox.result import RunResult
from eval.multipl_e_answers import CASES, Case

QUICK = ("python", "sh", "pl", "js")
RECORD = {
    "name": "HumanEval_900_twice",
    "language": "js",
    "prompt": "//Twice the number.\nfunction twice(n){\n",
    "tests": "const assert = require('node:assert');\n\nassert.deepEqual(twice(2),4);\n",
    "stop_tokens": ["\nfunction ", "\n//"],
}


def suite(language: str | None = None, variant: str | None = None) -> MultiPlE:
    return MultiPlE(SuiteOptions(language=language, variant=variant))


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def problem(tmp_path: Path, **changes: Any) -> Problem:
    return suite().load(write(tmp_path / "data.jsonl", {**RECORD, **changes}))[0]


def case_id(case: Case) -> str:
    return f"{case.language}-{case.number}"


def cases(one_a_language: bool = False) -> list[object]:
    chosen = {case.language: case for case in reversed(CASES)}.values() if one_a_language else CASES
    return [pytest.param(case, id=case_id(case), marks=() if is_quick(case) else pytest.mark.slow) for case in chosen]


def is_quick(case: Case) -> bool:
    return case.language in QUICK or (case.language, case.number) == ("cpp", 23)


def real_problem(case: Case, shared_data: Path) -> Problem:
    if lack := suite(case.language).missing():
        pytest.skip(lack)
    found = suite(case.language).load(shared_data / "multipl_e_humaneval")
    return next(each for each in found if re.search(r"\d+", each.task_id)[0] == str(case.number))  # type: ignore[index]


@pytest.mark.parametrize("case", cases())
def test_continued_prompts_are_judged(case: Case, shared_data: Path, run: Run) -> None:
    judged = suite()
    given = real_problem(case, shared_data)
    right, wrong = (judged.clean(given, raw, "base") for raw in (case.right, case.wrong))
    assert judged.judge(given, right, run).verdict == "ok"
    judgement = judged.judge(given, wrong, run)
    assert judgement.verdict == "failed"
    assert judgement.detail


@pytest.mark.parametrize("case", cases(one_a_language=True))
def test_chat_answers_with_the_whole_function_are_judged(case: Case, shared_data: Path, run: Run) -> None:
    """The answer repeats the prompt, with imports and class, and goes on after the function."""
    judged = suite()
    given = real_problem(case, shared_data)
    fence = find_dialect(case.language).fence
    for raw, verdict in ((case.right, "ok"), (case.wrong, "failed")):
        text = f"Of course:\n\n```{fence}\n{given.fields['prompt']}{raw}```\n\nRun it:\n\n```bash\nls\n```\n"
        answer = judged.clean(given, text, "chat")
        assert answer.whole
        assert judged.judge(given, answer, run).verdict == verdict


# Answers that leave out what the prompt has, or bring a main function of their own.
OTHER_FORMS = [
    ("cpp", 23, 'long string_length(std::string s) { return s.size(); }\n\nint main() {\n    puts("}");\n}\n'),
    ("java", 23, "import java.util.List;\n\npublic static long strlen(String s) {\n    return s.length();\n}\n"),
    ("java", 23, "    public static long strlen(String s) {\n        return s.length();\n    }\n}\n"),
    (
        "java",
        23,
        "public class Solution {\n    public static long strlen(String s) {\n        return s.length(); // }\n    }\n\n"
        "    public static void main(String[] args) {\n        System.out.println('}');\n    }\n}\n",
    ),
    (
        "cs",
        23,
        "using System;\nnamespace Answers {\n    class Problem {\n        public static long Strlen(string s) {\n"
        '            return s.Length;\n        }\n        static void Main() { Console.WriteLine("{"); }\n    }\n}\n',
    ),
    ("scala", 23, "def strlen(s: String): Long = s.length.toLong\n"),
    (
        "go",
        23,
        'package main\n\nimport "fmt"\n\nfunc strlen(s string) int { return len(s) }\n\nfunc main() { fmt.Print() }\n',
    ),
    ("go", 23, 'import (\n\t"unicode/utf8"\n)\n\nfunc strlen(s string) int { return utf8.RuneCountInString(s) }\n'),
    (
        "rs",
        23,
        "use std::collections::HashMap;\n\nfn strlen(s: String) -> isize { s.len() as isize }\n\nfn main() { }\n",
    ),
    (
        "php",
        107,
        "<?php\nfunction even_odd_palindrome($n) {\n  $all = array_filter(range(1, $n), fn($i) => $i == strrev($i));\n"
        "    $odd = count(array_filter($all, fn($i) => $i % 2));\n    return array(count($all) - $odd, $odd);\n}\n?>\n",
    ),
    ("d", 23, "import std.stdio;\nlong strlen(string s) { return s.length; }\nvoid main() { writeln(1); }\n"),
    ("rkt", 23, "#lang racket/base\n(define (strlen s) (string-length s))\n"),
    ("sh", 23, "#!/bin/bash\nstrlen() {\n    echo ${#1}  # not }\n}\n"),
    ("ts", 23, "export function strlen(s: string): number {\n    return s.length;\n}\n"),
    ("js", 23, "const strlen = (s) => s.length;\n"),
    ("python", 23, "def strlen(s: str) -> int:\n    return len(s)\n"),
]


@pytest.mark.parametrize(
    ("language", "number", "code"),
    [pytest.param(*form, id=form[0], marks=() if form[0] in QUICK else pytest.mark.slow) for form in OTHER_FORMS],
)
def test_whole_functions_in_other_forms(language: str, number: int, code: str, shared_data: Path, run: Run) -> None:
    given = real_problem(Case(language, number, "", ""), shared_data)
    answer = suite().clean(given, f"```\n{code}```", "chat")
    assert answer == Answer(code, whole=True)
    assert suite().judge(given, answer, run).verdict == "ok"


EARLY_EXITS = [
    ("sh", 23, "    exit 0\n}\nexit 0\n", "strlen() {\n    echo 1\n}\nexit 0\n"),
    ("pl", 23, "    exit 0;\n}\n", "sub strlen { 1 }\nexit 0;\n"),
    ("js", 23, "  process.exit(0);\n}\n", "function strlen(s) {}\nprocess.exit(0);\n"),
    ("python", 23, "    raise SystemExit(0)\n", "def strlen(s): pass\nraise SystemExit(0)\n"),
    ("cpp", 23, "    std::exit(0);\n}\n", "long string_length(std::string s) { std::exit(0); }\n"),
    (
        "go",
        23,
        "    os.Exit(0)\n    return 0\n}\n",
        'import "os"\n\nfunc strlen(s string) int { os.Exit(0); return 1 }\n',
    ),
    (
        "java",
        23,
        "        System.exit(0); return 0;\n    }\n",
        "static long strlen(String s) { System.exit(0); return 0; }\n",
    ),
    ("rb", 23, "  exit 0\nend\n", "def strlen(s)\nend\nexit 0\n"),
    ("lua", 23, "  os.exit(0)\nend\n", "function strlen(s) end\nos.exit(0)\n"),
    ("r", 23, "\n  quit(status = 0)\n}\n", "strlen <- function(s) 1\nquit(status = 0)\n"),
    ("php", 107, "    exit(0);\n}\n", "function even_odd_palindrome($n) {}\nexit(0);\n"),
    ("rkt", 23, "  (exit 0))\n", "(define (strlen s) 1)\n(exit 0)\n"),
    ("rs", 23, "    std::process::exit(0)\n}\n", "fn strlen(s: String) -> isize { std::process::exit(0) }\n"),
    ("d", 136, "{ import core.stdc.stdlib; exit(0); assert(0); }\n", ""),
    ("cs", 23, "        Environment.Exit(0); return 0;\n    }\n", ""),
    ("scala", 23, "        sys.exit(0)\n    }\n", ""),
    ("ts", 23, "  (globalThis as any).process.exit(0); return 0;\n}\n", ""),
]


@pytest.mark.parametrize(
    ("language", "number", "continued", "whole"),
    [pytest.param(*each, id=each[0], marks=() if each[0] in QUICK else pytest.mark.slow) for each in EARLY_EXITS],
)
def test_who_exits_early_has_not_passed(
    language: str, number: int, continued: str, whole: str, shared_data: Path, run: Run
) -> None:
    given = real_problem(Case(language, number, "", ""), shared_data)
    assert suite().judge(given, Answer(continued), run).verdict == "failed"
    if whole:
        assert suite().judge(given, Answer(whole, whole=True), run).verdict == "failed"


def test_the_solutions_of_the_python_file_pass(shared_data: Path, run: Run) -> None:
    judged = suite()
    problems = judged.load(shared_data / "multipl_e_humaneval" / "humaneval-python.jsonl")
    verdicts = {}
    for each in problems:
        gold = judged.gold(each)
        assert gold is not None
        verdicts[each.task_id] = judged.judge(each, gold, run).verdict
    assert len(verdicts) == 164
    assert set(verdicts.values()) == {"ok"}


@pytest.mark.parametrize("code", sorted(DIALECTS))
def test_every_file_of_the_data_is_understood(code: str, shared_data: Path) -> None:
    problems = suite(code).load(shared_data / "multipl_e_humaneval")
    dialect = DIALECTS[code]
    assert len(problems) > 150
    for each in problems:
        name = dialect.function_name(each.fields["prompt"])
        assert name
        assert name in each.fields["tests"]
        assert dialect.find_definition(each.fields["prompt"] + "{", name) is not None
        assert each.fields["language"] == code


def test_a_folder_needs_a_language(tmp_path: Path) -> None:
    write(tmp_path / "humaneval-js.jsonl", RECORD)
    write(tmp_path / "humaneval-jl.jsonl", {**RECORD, "language": "jl"})
    write(tmp_path / "mbpp-js-reworded.jsonl", {**RECORD, "name": "mbpp_2_twice"})
    assert suite("javascript").load(tmp_path)[0].task_id == "HumanEval_900_twice"
    assert suite("js", "mbpp").load(tmp_path)[0].task_id == "mbpp_2_twice"
    with pytest.raises(UsageError, match="is a folder: name one of its languages with --language"):
        suite().load(tmp_path)
    with pytest.raises(CodemillError, match="holds no file named like humaneval-rb"):
        suite("rb").load(tmp_path)


def test_a_json_list_is_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([RECORD, {**RECORD, "name": "HumanEval_901_twice"}]))
    assert [each.task_id for each in suite().load(tmp_path / "a.json")] == [
        "HumanEval_900_twice",
        "HumanEval_901_twice",
    ]


def test_the_language_is_the_records_or_the_file_names_or_the_users(tmp_path: Path) -> None:
    unnamed = {key: value for key, value in RECORD.items() if key != "language"}
    assert suite().load(write(tmp_path / "a.jsonl", {**RECORD, "language": "go_test.go"}))[0].fields["language"] == "go"
    assert suite().load(write(tmp_path / "humaneval-rkt.jsonl", unnamed))[0].fields["language"] == "rkt"
    assert suite("lua").load(write(tmp_path / "b.jsonl", unnamed))[0].fields["language"] == "lua"
    with pytest.raises(UsageError, match="neither the record nor the file's name says which language"):
        suite().load(tmp_path / "b.jsonl")


def test_wrong_records_are_named_by_their_line(tmp_path: Path) -> None:
    wrong = [
        ({"language": "cobol"}, "line 2: MultiPL-E has no language 'cobol' here: it has py, cpp"),
        ({"language": "rb"}, "line 2: the problem is in rb, not js"),
        ({"stop_tokens": ["a", 1]}, "line 2: 'stop_tokens' must be a list of texts"),
        ({"tests": None}, "line 2: 'tests' must be text"),
        ({"prompt": 1}, "line 2: 'prompt' must be text"),
        ({"name": RECORD["name"]}, "line 2: name 'HumanEval_900_twice' is also that of line 1"),
    ]
    for changes, message in wrong:
        path = write(tmp_path / "a.jsonl", RECORD, {**RECORD, "name": "HumanEval_901_other", **changes})
        with pytest.raises(CodemillError, match=re.escape(message)):
            suite("js").load(path)


def test_qwens_form_of_a_record(tmp_path: Path, run: Run) -> None:
    record = {"task_id": "Python/900", "prompt": 'def two():\n    """Two."""\n', "test": "assert two() == 2\n"}
    record |= {"canonical_solution": "    return 2\n"}
    given = suite().load(write(tmp_path / "humaneval-python.jsonl", record))[0]
    gold = suite().gold(given)
    assert gold == Answer("    return 2\n")
    assert given.fields["stop_tokens"] == ("\ndef", "\n#", "\nif", "\nclass")
    assert suite().judge(given, gold, run).verdict == "ok"


def test_unknown_languages_and_variants_are_refused() -> None:
    with pytest.raises(UsageError, match="MultiPL-E has no language 'cobol' here"):
        suite("cobol")
    with pytest.raises(UsageError, match="multipl-e has no variant 'apps'"):
        suite(variant="apps")


def test_where_the_data_comes_from() -> None:
    assert (suite("python").source().url or "").endswith("/humaneval-python.jsonl")
    assert (suite("rust").source().url or "").endswith("/humaneval-rs.jsonl")
    assert (suite("go", "mbpp").source().url or "").endswith("/mbpp-go-reworded.jsonl")
    with pytest.raises(UsageError, match="multipl-e needs --language"):
        suite().source()


def test_prompts(tmp_path: Path) -> None:
    given = problem(tmp_path)
    base = suite().prompt(given, "base")
    assert base.text == "//Twice the number.\nfunction twice(n){"
    assert base.stop == ("\nfunction ", "\n//")
    chat = suite().prompt(given, "chat")
    assert chat.messages is not None
    assert "```javascript\n//Twice the number.\nfunction twice(n){\n```" in chat.messages[0]["content"]


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("  return 1;\n}\nint x;", ["\n}"], "  return 1;"),
        ("a\n//b\nfunction c", ["\nfunction ", "\n//"], "a"),
        ("  x;\n    }", ["\n    }\n"], "  x;"),  # the text ends where the line does
        ("  x;\n    } // not the end", ["\n    }\n"], "  x;\n    } // not the end"),
        ("", ["\n}"], ""),
        ("abc", [], "abc"),
        ("abc", [""], "abc"),
    ],
)
def test_completions_are_cut_at_the_first_stop_token(text: str, stops: list[str], kept: str) -> None:
    assert cut(text, stops) == kept
    assert cut(kept, stops) == kept


def test_a_chat_answer_without_the_function_goes_on_after_the_prompt(tmp_path: Path, run: Run) -> None:
    given = problem(tmp_path)
    if lack := suite("js").missing():
        pytest.skip(lack)
    answer = suite().clean(given, "```js\n  return 2 * n;\n}\n// that is all\n```", "chat")
    assert answer == Answer("  return 2 * n;\n}")
    assert suite().judge(given, answer, run).verdict == "ok"


def test_the_first_block_that_defines_the_function_counts(tmp_path: Path) -> None:
    raw = "```js\ntwice(2)\n```\n```js\nfunction twice(n) { return 2 * n; }\n```\n```js\nfunction twice(n) {}\n```\n"
    assert suite().clean(problem(tmp_path), raw, "chat") == Answer("function twice(n) { return 2 * n; }\n", whole=True)


@pytest.mark.parametrize("code", ["js", "cpp", "java", "go", "rs", "sh"])
def test_endless_answers_are_put_together_quickly(code: str, tmp_path: Path) -> None:
    """What a model may repeat until it is stopped, and 10 MB of it; the programs are not run here."""
    given = problem(tmp_path, language=code)
    if lack := DIALECTS[code].missing():
        pytest.skip(lack)
    pieces = ["function twice(n) { ", "x twice(", "import (\n", "use a\n", "\n", "/* ", "{", "'", "\0\ud800"]
    raws = [*(piece * (200_000 // len(piece)) for piece in pieces), "{" * 10_000_000]
    start = time.monotonic()
    for raw in raws:
        answer = suite().clean(given, raw, "chat")
        for whole in (False, True):
            judgement = suite().judge(given, replace(answer, whole=whole), lambda job: RunResult("failed"))
            assert judgement.verdict == "failed"
    assert time.monotonic() - start < 20  # below 1 where nothing else runs


def test_a_missing_toolchain_is_no_fault_of_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = replace(DIALECTS["js"], libraries={"no/such/library-*.js": "node-library"})
    monkeypatch.setattr(multipl_e_dialects, "_DIALECTS", (lacking,))
    monkeypatch.setattr("codemill.eval.multipl_e.DIALECTS", {"js": lacking})
    if find_executable("node") is None:
        pytest.skip("node is not there")
    message = "JavaScript: /no/such/library-*.js not found: apt-get install node-library"
    assert suite("js").missing() == message
    given = problem(tmp_path)
    judgement = suite().judge(given, Answer(""), lambda job: RunResult("ok"))
    assert (judgement.verdict, judgement.detail) == ("harness error", message)
    assert suite().toolchain_fault([given], lambda job: RunResult("ok")) == message


def test_toolchains_are_checked_before_answers_are(tmp_path: Path, run: Run) -> None:
    given = problem(tmp_path, language="sh")
    assert suite().toolchain_fault([given], run) is None
    fault = suite().toolchain_fault([given], lambda job: RunResult("ok"))
    assert fault is not None
    assert fault.startswith("Bash: a program that must be 'failed' is 'ok'")


def test_the_table_lists_every_language_with_its_packages() -> None:
    table = {row.code: row for row in language_table()}
    assert set(table) == set(DIALECTS)
    assert table["java"].packages == ("default-jdk-headless", "libjavatuples-java")
    assert table["jl"].packages == ()
    assert (table["sh"].name, table["sh"].executable) == ("Bash", find_executable("bash"))
    for row in table.values():
        assert (row.version is None) <= (row.missing is not None)


def test_the_page_of_toolchains_names_every_package() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "toolchains.md").read_text()
    table = {word for line in page.splitlines() if line.startswith("|") for word in line.split()}
    assert set(debian_packages()) <= table
