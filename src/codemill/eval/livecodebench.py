"""LiveCodeBench: problems of programming contests, judged by their tests on standard input or through a function.

Jain et al. 2024, "LiveCodeBench: Holistic and Contamination Free Evaluation of Large Language Models for Code". Code
generation in Python. Each test runs in a process of its own, for 6 seconds as with the authors. Outputs are compared
line by line, then number by number; numbers with a fraction to one part in a million, as contest sites do.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from codemill.chat.reasoning import split_reasoning
from codemill.errors import CodemillError, UsageError
from codemill.eval import livecodebench_program
from codemill.eval.fences import blocks
from codemill.eval.livecodebench_tests import Test, decode, function_name, is_plausible, read_tests
from codemill.eval.records import Record, read_records
from codemill.eval.suite import (
    Answer,
    DataSource,
    Judgement,
    Problem,
    Prompt,
    Run,
    Style,
    Suite,
    SuiteOptions,
    judgement_of,
)
from codemill.sandbox.job import MIB, Job, Limits, python_job, to_bytes
from codemill.sandbox.result import RunResult

_FILES = {f"v{i}": f"test{i if i > 1 else ''}.jsonl" for i in range(1, 7)}  # each holds what its release added
_NEWEST = "v6"
_TOLERANCE = 1e-6
_NEXT_SECTION = "\n### "

_SYSTEM = (
    "You write Python programs that solve programming problems. Answer with a complete program that is correct for all"
    " inputs the problem allows, and with nothing else."
)
_WITH_STARTER = "Complete this code, keeping its names, and put all of it into one code block."
_WITHOUT_STARTER = (
    "Read the input from standard input and write the answer to standard output; do not run it on the examples. Put the"
    " whole program into one code block."
)
_EXAMPLE_PROGRAM = """\
### Question
You are given n whole numbers. Print the largest difference between two of them.

The first line holds n (2 <= n <= 10^5), the second the n numbers.

### Answer

n = int(input())
numbers = list(map(int, input().split()))
print(max(numbers) - min(numbers))

"""
_EXAMPLE_FUNCTION = """\
### Question
Given a list of whole numbers, return the largest difference between two of them.

### Starter Code
class Solution:
    def largestDifference(self, nums: List[int]) -> int:

### Answer

class Solution:
    def largestDifference(self, nums: List[int]) -> int:
        return max(nums) - min(nums)

"""


class LiveCodeBench(Suite):
    """`variant`: the part of the data set to fetch, "v1" to "v6" (the default). Gold solutions are judged where records
    have a `solution` or `code`, which the public ones do not."""

    name = "livecodebench"
    title = "LiveCodeBench (code generation)"
    styles = ("chat", "base")
    cheap_gold = False

    def __init__(self, options: SuiteOptions = SuiteOptions()) -> None:  # noqa: B008
        super().__init__(options)
        if options.variant not in (None, *_FILES):
            raise UsageError(f"livecodebench has no variant {options.variant!r}; it has {', '.join(_FILES)}")
        if options.language not in (None, "python"):
            raise UsageError(f"livecodebench is judged in Python only, not in {options.language!r}")

    def source(self) -> DataSource:
        return DataSource("livecodebench/code_generation_lite", _FILES[self.options.variant or _NEWEST])

    def load(self, path: Path) -> list[Problem]:
        files = sorted(file for file in path.glob("*.json*") if file.is_file()) if path.is_dir() else [path]
        if not files:
            raise CodemillError(f"{path} holds no file named like test.jsonl")
        problems: dict[str, Problem] = {}
        for file in files:
            for record in read_records(file, {"question_content": str}, key="question_id"):
                problem = _problem(record)
                if problem.task_id in problems:
                    raise CodemillError(f"{record.where}: question_id {problem.task_id!r} is also in another file")
                problems[problem.task_id] = problem
        return list(problems.values())

    def prompt(self, problem: Problem, style: Style) -> Prompt:
        starter = problem.fields.get("starter_code") or ""
        if style == "base":
            return Prompt(text=_base_text(problem, starter), stop=(_NEXT_SECTION,), max_tokens=2000)
        task = f"{_WITH_STARTER}\n\n```python\n{starter}\n```" if starter else _WITHOUT_STARTER
        content = f"### Question\n{problem.fields['question_content']}\n\n### Format\n{task}\n"
        messages = ({"role": "system", "content": _SYSTEM}, {"role": "user", "content": content})
        return Prompt(messages=messages, max_tokens=4096)

    def clean(self, problem: Problem, raw: str, style: Style) -> Answer:
        """The last code block, as with the authors; without any, all of the text."""
        text = split_reasoning(raw).content if style == "chat" else raw.partition(_NEXT_SECTION)[0]
        code = [block.code for block in blocks(text) if block.language in ("", "python", "python3", "py")]
        return Answer(code[-1] if code else text.strip(), whole=True)

    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        try:
            tests = read_tests(problem.fields)
        except CodemillError as error:
            return Judgement("harness error", str(error))
        name, waited = function_name(problem.fields), 0.0
        for number, test in enumerate(tests, 1):
            result = run(_job(answer.text, test, name))
            waited += result.waited_seconds
            judgement = _judged(test, result)
            if judgement.verdict != "ok":
                detail = f"test {number} of {len(tests)}: {judgement.detail}"
                return replace(judgement, detail=detail[:2000], waited_seconds=waited)
        return Judgement("ok", waited_seconds=waited)

    def gold(self, problem: Problem) -> Answer | None:
        solutions = (problem.fields.get(name) for name in ("solution", "code"))
        return next((Answer(solution, whole=True) for solution in solutions if isinstance(solution, str)), None)

    def preload(self) -> Sequence[str]:
        return (*livecodebench_program.MODULES, "typing")


def _problem(record: Record) -> Problem:
    public, private = record.need("public_test_cases", (str, list)), record.fields.get("private_test_cases", [])
    try:
        tests = decode(public)
    except CodemillError as error:
        raise CodemillError(f"{record.where}: public_test_cases: {error}") from None
    if not is_plausible(private):
        raise CodemillError(f"{record.where}: private_test_cases is neither JSON nor compressed")
    if any(test.kind == "functional" for test in tests) and function_name(record.fields) is None:
        raise CodemillError(f"{record.where}: the tests call a function, and the record does not name it")
    return Problem(str(record.fields["question_id"]), record.fields)


def _base_text(problem: Problem, starter: str) -> str:
    example = _EXAMPLE_FUNCTION if starter else _EXAMPLE_PROGRAM
    section = f"### Starter Code\n{starter}\n\n" if starter else ""
    return f"{example}### Question\n{problem.fields['question_content']}\n\n{section}### Answer\n\n"


def _job(code: str, test: Test, name: str | None) -> Job:
    limits = Limits(cpu_seconds=6.0, memory=2048 * MIB, output=MIB + 2 * len(test.output))
    program = Path(livecodebench_program.__file__).read_text(encoding="utf-8")
    files = {livecodebench_program.SOLUTION: to_bytes(code)}
    if test.kind == "stdin":
        return python_job(f"{program}\n\nrun_program()\n", test.input, limits, files)
    files[livecodebench_program.ARGUMENTS] = to_bytes(test.input)
    job = python_job(f"{program}\n\nrun_function({name!r})\n", limits=limits, files=files)
    return replace(job, collect=(livecodebench_program.RESULT,))


def _judged(test: Test, result: RunResult) -> Judgement:
    if test.kind == "stdin" and result.status == "ok":
        fault = output_fault(result.stdout, test.output)
        return Judgement("failed", fault) if fault else Judgement("ok")
    judgement = judgement_of(result)
    if judgement.verdict != "ok":
        return judgement
    try:
        actual = json.loads(result.files[livecodebench_program.RESULT])
        wanted = json.loads(test.output)
    except (ValueError, LookupError, RecursionError) as error:
        return Judgement("failed", f"the result cannot be compared: {error}")
    if same_value(actual, wanted):
        return Judgement("ok")
    return Judgement("failed", f"it returns {_shown(actual)} instead of {_shown(wanted)}")


def output_fault(output: str, wanted: str) -> str:
    """Why what a program wrote is not what it should have written; empty if it is. White space at the ends of lines and
    of the whole does not count."""
    lines, wanted_lines = output.strip().split("\n"), wanted.strip().split("\n")
    for number, (line, wanted_line) in enumerate(zip(lines, wanted_lines, strict=False), 1):
        if line.strip() != wanted_line.strip() and not _same_numbers(line, wanted_line):
            return f"line {number} of the output is {_shown(line)} instead of {_shown(wanted_line)}"
    if len(lines) != len(wanted_lines):
        return f"{len(lines)} lines of output instead of {len(wanted_lines)}"
    return ""


def _same_numbers(line: str, wanted: str) -> bool:
    words, wanted_words = line.split(), wanted.split()
    return len(words) == len(wanted_words) and all(map(_same_number, words, wanted_words))


def _same_number(word: str, wanted: str) -> bool:
    """Equal words or numbers; only if the wanted one has a fraction may they differ by a little."""
    if word == wanted:
        return True
    try:
        number, wanted_number = Decimal(word), Decimal(wanted)
        if number == wanted_number:
            return True
        return "." in wanted and math.isclose(number, wanted_number, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    except (InvalidOperation, ValueError, OverflowError):
        return False


def same_value(actual: Any, wanted: Any) -> bool:
    """Equality of JSON values, with fractions to one part in a million."""
    if isinstance(wanted, list):
        return isinstance(actual, list) and len(actual) == len(wanted) and all(map(same_value, actual, wanted))
    if isinstance(wanted, dict):
        is_alike = isinstance(actual, dict) and actual.keys() == wanted.keys()
        return is_alike and all(same_value(actual[key], wanted[key]) for key in wanted)
    if isinstance(wanted, float) and isinstance(actual, int | float):
        return math.isclose(actual, wanted, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return bool(actual == wanted)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
