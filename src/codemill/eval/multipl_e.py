"""MultiPL-E: HumanEval and MBPP translated to eighteen languages.

Cassano et al. 2023, "MultiPL-E: A Scalable and Polyglot Approach to Benchmarking Neural Code Generation" (IEEE TSE 49).
Programs are put together as by the authors' `evaluation/`, and run by the toolchains of docs/toolchains.md.
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from codemill.errors import CodemillError, UsageError
from codemill.eval.fences import blocks
from codemill.eval.multipl_e_dialects import DIALECTS, Dialect, find_dialect
from codemill.eval.multipl_e_programs import continued_program, cut, proof_of_end, whole_program
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
    judgement_of,
)
from codemill.sandbox.languages import check_toolchain, find_executable, installed_version, language_job
from codemill.sandbox.result import RunResult

VARIANTS = ("humaneval", "mbpp")
_FILE_NAME = re.compile(r"(?:humaneval|mbpp)-([a-z]+(?:_test\.go)?)(?=[-.])", re.IGNORECASE)
# The same files as the authors', one a language, Python with them.
_HUMANEVAL = (
    "https://raw.githubusercontent.com/QwenLM/Qwen3-Coder/0ae30f55e9d6c47ff763c334f99c135ad68915dd/"
    "qwencoder-eval/base/benchmarks/multiple-eval/data/humaneval-{}.jsonl"
)
_MBPP = "https://raw.githubusercontent.com/nuprl/MultiPL-E/main/prompts/mbpp-{}-reworded.jsonl"
_PYTHON_STOPS = ("\ndef", "\n#", "\nif", "\nclass")  # the authors', for data that leaves them out
_TELLING = re.compile(r"error|assert|exception|panic|expected|actual|fail", re.IGNORECASE)


class MultiPlE(Suite):
    """`language` is one of `DIALECTS` or an alias; by default the data's own. `--data` is a file of one language, or a
    folder of such files, named like humaneval-rs.jsonl; `variant` then says which: humaneval (default) or mbpp."""

    name = "multipl-e"
    title = "MultiPL-E"
    styles = ("base", "chat")

    def __init__(self, options: SuiteOptions = SuiteOptions()) -> None:  # noqa: B008
        super().__init__(options)
        if options.variant not in (None, *VARIANTS):
            raise UsageError(f"multipl-e has no variant {options.variant!r}: it has {' and '.join(VARIANTS)}")
        self._dialect = find_dialect(options.language) if options.language is not None else None

    def source(self) -> DataSource:
        if self._dialect is None:
            raise UsageError("multipl-e needs --language, or a file of one language with --data")
        if self.options.variant == "mbpp":
            return DataSource(url=_MBPP.format(self._dialect.code))
        return DataSource(url=_HUMANEVAL.format("python" if self._dialect.code == "py" else self._dialect.code))

    def load(self, path: Path) -> list[Problem]:
        file = self._file(path)
        first = next(read_records(file, key=None), None)
        key = "name" if first is not None and "name" in first.fields else "task_id"
        return [self._problem(file, record, key) for record in read_records(file, {"prompt": str}, key)]

    def _file(self, path: Path) -> Path:
        if not path.is_dir():
            return path
        if self._dialect is None:
            raise UsageError(f"{path} is a folder: name one of its languages with --language, or one of its files")
        stems = [f"{self.options.variant or VARIANTS[0]}-{code}" for code in self._dialect.codes]
        return find_file(path, [pattern for stem in stems for pattern in (f"{stem}.json*", f"{stem}-*.json*")])

    def _problem(self, file: Path, record: Record, key: str) -> Problem:
        dialect = self._language_of(file, record)
        tests = record.need("tests" if "tests" in record.fields else "test", str)
        stops = record.fields.get("stop_tokens") or ()
        if not isinstance(stops, list | tuple) or not all(isinstance(token, str) for token in stops):
            raise CodemillError(f"{record.where}: 'stop_tokens' must be a list of texts")
        if not stops and dialect.code == "py":
            stops = _PYTHON_STOPS
        fields = {**record.fields, "language": dialect.code, "tests": tests, "stop_tokens": tuple(stops)}
        return Problem(str(record.fields[key]), fields)

    def _language_of(self, file: Path, record: Record) -> Dialect:
        named = record.fields.get("language")
        if not isinstance(named, str) or not named:
            in_name = _FILE_NAME.search(file.name)
            named = in_name[1] if in_name else None
        if named is None:
            if self._dialect is None:
                raise UsageError(f"{record.where}: neither the record nor the file's name says which language it is in")
            return self._dialect
        try:
            found = find_dialect(named)
        except UsageError as error:
            raise CodemillError(f"{record.where}: {error}") from None
        if self._dialect not in (None, found):
            raise CodemillError(f"{record.where}: the problem is in {named}, not {self.options.language}")
        return found

    def prompt(self, problem: Problem, style: Style) -> Prompt:
        """base: without white space around it, as the authors ask their models."""
        text, dialect = problem.fields["prompt"], _dialect(problem)
        if style == "base":
            return Prompt(text=text.strip(), stop=problem.fields["stop_tokens"], max_tokens=512)
        question = (
            f"Complete this {dialect.toolchain.title.removesuffix(' test')} function. Answer with the whole function "
            f"and whatever it needs, in one code block, without tests.\n\n```{dialect.fence}\n{text.strip()}\n```"
        )
        return Prompt(messages=({"role": "user", "content": question},), max_tokens=1024)

    def clean(self, problem: Problem, raw: str, style: Style) -> Answer:
        """base: up to the first stop token. chat: the first code block that defines the function; a block without
        it goes on after the prompt."""
        if style == "base":
            return Answer(cut(raw, problem.fields["stop_tokens"]))
        codes = [block.code for block in blocks(raw)] or [raw]
        whole = next((code for code in codes if _defines(problem, code)), None)
        if whole is not None:
            return Answer(whole, whole=True)
        return Answer(cut(codes[0], problem.fields["stop_tokens"]))

    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        dialect, tests = _dialect(problem), problem.fields["tests"]
        if lack := dialect.missing():
            return Judgement("harness error", lack)
        result = run(language_job(dialect.toolchain, _program(problem, answer)))
        if result.status == "ok" and proof_of_end(dialect, tests) not in result.stdout + result.stderr:
            return replace(judgement_of(result), verdict="failed", detail="the program exited before its tests ended")
        return judgement_of(_with_telling_lines(result))

    def gold(self, problem: Problem) -> Answer | None:
        """Only the Python file of Qwen's edition has solutions."""
        solution = problem.fields.get("canonical_solution")
        return Answer(solution) if isinstance(solution, str) else None

    def missing(self) -> str | None:
        return self._dialect.missing() if self._dialect else None

    def toolchain_fault(self, problems: Sequence[Problem], run: Run) -> str | None:
        """A passing and a failing program in each language: most of the data has no solutions to check with."""
        for dialect in {problem.fields["language"]: _dialect(problem) for problem in problems}.values():
            if fault := dialect.missing() or check_toolchain(dialect.toolchain, run):
                return fault
        return None


@dataclass(frozen=True)
class LanguageRow:
    """A language of MultiPL-E on this host. executable: where its first program lies, None if the host lacks it.
    missing: one line on what is lacking, and how to get it."""

    name: str
    code: str
    executable: str | None
    version: str | None
    packages: tuple[str, ...]
    missing: str | None


def language_table() -> list[LanguageRow]:
    """All languages of the suite, by name. Asks each toolchain for its version, which takes seconds the first time."""
    with ThreadPoolExecutor() as threads:
        rows = threads.map(_language_row, DIALECTS.values())
        return sorted(rows, key=lambda row: row.name.lower())


def debian_packages() -> list[str]:
    """Everything that `apt-get install` has to bring for all the languages that Debian 12 has; Python is there."""
    return sorted({package for dialect in DIALECTS.values() for package in dialect.packages} - {"python3", "bash"})


def _language_row(dialect: Dialect) -> LanguageRow:
    language = dialect.toolchain
    executable = find_executable(language.executables[0]) if language.executables else language.version[0]
    return LanguageRow(
        name=language.title.removesuffix(" test"),
        code=dialect.code,
        executable=executable,
        version=installed_version(language),
        packages=dialect.packages,
        missing=dialect.missing(),
    )


def _dialect(problem: Problem) -> Dialect:
    return DIALECTS[problem.fields["language"]]


def _defines(problem: Problem, code: str) -> bool:
    dialect = _dialect(problem)
    name = dialect.function_name(problem.fields["prompt"])
    return name is not None and dialect.find_definition(code, name) is not None


def _program(problem: Problem, answer: Answer) -> str:
    """The source that is run. Answers from elsewhere are cut like a model's: that changes nothing in one that is."""
    dialect, prompt, tests = _dialect(problem), problem.fields["prompt"], problem.fields["tests"]
    if answer.whole:
        return whole_program(dialect, prompt, answer.text, tests, dialect.function_name(prompt) or "")
    return continued_program(dialect, prompt, cut(answer.text, problem.fields["stop_tokens"]), tests)


def _with_telling_lines(result: RunResult) -> RunResult:
    """The result with two lines of its output that say what went wrong at the end, where the judgement's detail takes
    them from: many toolchains end with a stack trace, and some write to stdout."""
    lines = list(chain(*(_lines(text) for text in (result.stdout, result.stderr))))
    telling = [line for line in lines if _TELLING.search(line)] or lines[-2:]
    return replace(result, stderr="\n".join(line[:300] for line in telling[:2]))


def _lines(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line.strip())
