"""HumanEvalPack: HumanEval in six languages, to be written or to be mended.

Muennighoff et al. 2023, "OctoPack: Instruction Tuning Code Large Language Models" (arXiv 2308.07124). `variant` "fix"
(HumanEvalFix with tests) gives a function with a bug and its tests; "synthesize" gives its description.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from codemill.errors import CodemillError, UsageError
from codemill.eval.brace_text import code_only, end_of_block, open_blocks
from codemill.eval.cleaning import (
    FUNCTION_STOPS,
    SPECIAL_TOKENS,
    answered_function,
    continued_function,
    cut_at_first,
    tidy,
)
from codemill.eval.fences import blocks
from codemill.eval.humanevalpack_dialects import CPP, END, JAVA, JS, RUST, Dialect
from codemill.eval.humanevalpack_go import GO
from codemill.eval.python_program import judge_program
from codemill.eval.records import Kind, Record, find_file, read_records
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
from codemill.sandbox.job import Job
from codemill.sandbox.languages import language_job, missing

VARIANTS = ("fix", "synthesize")
_DIALECTS: Mapping[str, Dialect] = {dialect.code: dialect for dialect in (JS, JAVA, GO, CPP, RUST)}
LANGUAGES = ("python", *_DIALECTS)
_ALIASES = {"py": "python", "javascript": "js", "c++": "cpp", "golang": "go", "rs": "rust"}
_NEEDED: dict[str, Kind] = dict.fromkeys(
    ("prompt", "declaration", "canonical_solution", "buggy_solution", "test", "entry_point"), str
)
_TELLING = re.compile(r"error|assert|exception|panic|expected", re.IGNORECASE)
# The authors put these before every Python program, and numpy, which would have to be there.
_PYTHON_HEAD = "\n".join(
    [f"import {name}" for name in ("math re sys copy datetime itertools collections heapq statistics".split())]
    + ["import functools", "import hashlib", "import string", "from typing import *", "from collections import *"]
)


class HumanEvalPack(Suite):
    """164 problems in each of `LANGUAGES`; `language` chooses what is fetched (python by default)."""

    name = "humanevalpack"
    title = "HumanEvalPack"
    styles = ("chat", "base")
    cheap_gold = False

    def __init__(self, options: SuiteOptions = SuiteOptions()) -> None:  # noqa: B008
        super().__init__(options)
        if options.variant not in (None, *VARIANTS):
            raise UsageError(f"humanevalpack has no variant {options.variant!r}: it has {' and '.join(VARIANTS)}")
        self._language = None if options.language is None else _language(options.language)

    def source(self) -> DataSource:
        home = "https://raw.githubusercontent.com/bigcode-project/octopack/main/evaluation/create/humaneval-x/data"
        return DataSource(url=f"{home}/{self._language or 'python'}/data/humanevalpack.jsonl")

    def load(self, path: Path) -> list[Problem]:
        language = self._language or "python"
        patterns = (f"*{language}*.jsonl*", f"{language}/data/*.jsonl", "humanevalpack*.jsonl*")
        return [self._problem(record) for record in read_records(find_file(path, patterns), _NEEDED)]

    def _problem(self, record: Record) -> Problem:
        task_id = str(record.fields["task_id"])
        shown = _ALIASES.get(task_id.partition("/")[0].lower(), task_id.partition("/")[0].lower())
        language = shown if shown in LANGUAGES else self._language
        if language is None:
            raise CodemillError(f"{record.where}: {task_id!r} does not tell the language: name it with --language")
        if self._language not in (None, language):
            raise CodemillError(f"{record.where}: the problem is in {language}, not {self._language}")
        dialect = _DIALECTS.get(language)
        if dialect and dialect.tests and not dialect.tests.search(code_only(record.fields["test"], language)):
            raise CodemillError(f"{record.where}: 'test' has no test function")
        return Problem(task_id, {**record.fields, "language": language})

    def missing(self) -> str | None:
        return _missing(self._language or "python")

    def toolchain_fault(self, problems: Sequence[Problem], run: Run) -> str | None:
        """The languages are those of the data. That their toolchains work, the gold check shows."""
        languages = sorted({problem.fields["language"] for problem in problems})
        return next(filter(None, map(_missing, languages)), None)

    def prompt(self, problem: Problem, style: Style) -> Prompt:
        dialect = _DIALECTS.get(problem.fields["language"])
        stops = dialect.stops if dialect else FUNCTION_STOPS
        if style == "base":
            return Prompt(text=self._base_text(problem).rstrip(), stop=stops, max_tokens=768)
        return Prompt(messages=({"role": "user", "content": self._question(problem)},), max_tokens=1024)

    def _base_text(self, problem: Problem) -> str:
        """The authors' prompt without a template: the buggy function and its tests, the order, the declaration."""
        fields = problem.fields
        if self.options.variant == "synthesize":
            return str(fields["prompt"])
        order = f"Fix bugs in {_function(problem)}."
        return f"{_buggy(problem)}\n{fields['test']}\n{order}\n\n{fields['declaration']}"

    def _question(self, problem: Problem) -> str:
        fields = problem.fields
        dialect = _DIALECTS.get(fields["language"])
        title, fence = (dialect.title, dialect.fences[0]) if dialect else ("Python", "python")
        form = "Answer with the whole function, with the imports it needs, in one Markdown code block, without tests."
        if self.options.variant == "synthesize":
            return f"Complete this {title} function. {form}\n\n```{fence}\n{fields['prompt'].strip()}\n```"
        return (
            f"This {title} function has a bug:\n\n```{fence}\n{_buggy(problem).strip()}\n```\n\n"
            f"It fails these tests:\n\n```{fence}\n{fields['test'].strip()}\n```\n\n"
            f"Fix {_function(problem)}. {form}"
        )

    def clean(self, problem: Problem, raw: str, style: Style) -> Answer:
        fields = problem.fields
        dialect = _DIALECTS.get(fields["language"])
        if dialect is None:
            clean = continued_function if style == "base" else answered_function
            return clean(raw, fields["prompt"], fields["entry_point"])
        if style == "base":
            return Answer(_body(cut_at_first(raw.replace("\r\n", "\n"), SPECIAL_TOKENS), dialect))
        return _answered(tidy(raw), dialect, _function(problem))

    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        fields = problem.fields
        dialect = _DIALECTS.get(fields["language"])
        if dialect is None:
            start = answer.text if answer.whole else fields["prompt"] + answer.text
            return judge_program(run, f"{_PYTHON_HEAD}\n{start}\n{fields['test']}")
        if lack := missing(dialect.toolchain):
            return Judgement("harness error", lack)
        result = run(_job(dialect, dialect.program(fields, answer.text, answer.whole)))
        judgement = judgement_of(replace(result, stderr=_telling(result.stderr)))
        if result.status == "ok" and END not in result.stdout + result.stderr:
            return replace(judgement, verdict="failed", detail="the program exited before its tests ended")
        return judgement

    def gold(self, problem: Problem) -> Answer | None:
        return Answer(problem.fields["canonical_solution"])

    def wrong(self, problem: Problem) -> Answer | None:
        return Answer(problem.fields["buggy_solution"])


def _language(name: str) -> str:
    plain = _ALIASES.get(name.lower(), name.lower())
    if plain not in LANGUAGES:
        raise UsageError(f"humanevalpack has no language {name!r}: it has {', '.join(LANGUAGES)}")
    return plain


def _job(dialect: Dialect, program: str) -> Job:
    job = language_job(dialect.toolchain, program)
    if dialect is CPP and re.search(r"#include\s*<openssl/", program):  # one task's own solution
        return replace(job, build=((*job.build[0], "-lcrypto"), *job.build[1:]))
    return job


def _telling(errors: str) -> str:
    """Of what a toolchain writes, the lines that say what is wrong: its last ones seldom do."""
    return "\n".join([line for line in errors.splitlines() if _TELLING.search(line)][:2]) or errors


def _function(problem: Problem) -> str:
    dialect = _DIALECTS.get(problem.fields["language"])
    name = dialect.function(problem.fields["prompt"]) if dialect else None
    return name or problem.fields["entry_point"]


def _buggy(problem: Problem) -> str:
    return f"{problem.fields['declaration']}{problem.fields['buggy_solution']}"


def _body(text: str, dialect: Dialect) -> str:
    """What goes on behind the declaration, up to the brace that closes it; if only such braces lack, they are added."""
    code = code_only(text, dialect.code)
    end = end_of_block(code, depth=dialect.open_blocks)
    if end is not None:
        return text[:end]
    lacking = dialect.open_blocks + open_blocks(code)
    return text + "\n}" * (lacking if lacking <= dialect.open_blocks else 0)


def _answered(text: str, dialect: Dialect, name: str) -> Answer:
    """From a chat answer: of its blocks, the longest that defines the function, else the longest one's body."""
    found = blocks(text)
    named = [block.code for block in found if block.language in dialect.fences]
    codes = named or [block.code for block in found if not block.language] or [block.code for block in found] or [text]
    defining = [code for code in codes if dialect.defines(code, name)]
    code = max(defining or codes, key=len)
    return Answer(code, whole=True) if defining else Answer(_body(code, dialect))


def _missing(language: str) -> str | None:
    dialect = _DIALECTS.get(language)
    return missing(dialect.toolchain) if dialect else None
