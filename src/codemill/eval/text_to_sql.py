"""Text-to-SQL: a query in SQLite's dialect for a question about a database, judged by what the query returns.

Three public formats, told apart by their content:

- sql-eval (defog): `questions_gen_sqlite.csv`, `instruct_basic_sqlite.csv` or `instruct_advanced_sqlite.csv` (the
  `variant`), with the databases as scripts in a folder near it. A question may have several gold queries; the result
  may have columns that they lack.
- Spider (Yu et al. 2018): JSON records with `question`, `query` and `db_id`; columns may stand in any order.
- BIRD (Li et al. 2023): JSON records with `question`, `SQL`, `db_id` and `evidence`; columns must stand in theirs.

`db_path`, a path from the file of the questions, may stand for `db_id`. See `sql_program` for how results are compared.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from codemill.chat.reasoning import split_reasoning
from codemill.errors import CodemillError, UsageError
from codemill.eval import sql_program
from codemill.eval.records import Record, find_file, read_records
from codemill.eval.sql_database import find_database, load_database
from codemill.eval.sql_text import alternatives, order_terms, query_in
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
from codemill.sandbox.job import MIB, Limits, python_job, to_bytes

VARIANTS = ("questions_gen", "instruct_basic", "instruct_advanced")
_CPU_SECONDS = 10.0  # as in sql-eval
_LONGEST = 100_000  # characters of an answer that are looked at
_PATTERNS = ("dev.json", "test.json", "*.jsonl", "*.jsonl.gz", "*.json", "*/dev.json")

_CHAT_PROMPT = """\
Write one SQLite query that answers a question about this database.

```sql
{schema}
```

{hints}Question: {question}

Answer with the query in a ```sql code block.
"""
_BASE_PROMPT = """\
### Task
One SQLite query that answers the question: {question}

### Database
{schema}

{hints}### Query
```sql
"""


class TextToSql(Suite):
    """`--data` is the file of questions, or a folder with it. `variant` chooses among sql-eval's files in a folder."""

    name = "text-to-sql"
    title = "text-to-SQL"
    styles = ("chat", "base")

    def __init__(self, options: SuiteOptions = SuiteOptions()) -> None:  # noqa: B008
        super().__init__(options)
        if options.variant is not None and options.variant not in VARIANTS:
            raise UsageError(f"text-to-sql has no variant {options.variant!r}; it has {', '.join(VARIANTS)}")
        if options.language not in (None, "sql", "sqlite"):
            raise UsageError(f"text-to-sql judges queries for SQLite only, not for {options.language!r}")

    def source(self) -> DataSource:
        return DataSource()

    def load(self, path: Path) -> list[Problem]:
        file = self._file(path)
        read = _read_csv if ".csv" in file.suffixes else _read_json
        found = [_with_database(file, fields, where) for fields, where in read(file)]
        return [Problem(str(fields["task_id"]), fields) for fields in found]

    def _file(self, path: Path) -> Path:
        name = f"{self.options.variant or VARIANTS[0]}_sqlite.csv"
        if not path.is_dir():
            return path
        for pattern in (name, f"*/{name}"):
            if found := sorted(path.glob(pattern)):
                return found[0]
        return find_file(path, [name] if self.options.variant else _PATTERNS)

    def prompt(self, problem: Problem, style: Style) -> Prompt:
        fields = problem.fields
        hints = f"Hints: {fields['hints'].strip()}\n\n" if fields["hints"].strip() else ""
        schema = load_database(Path(fields["database"])).schema
        text = _CHAT_PROMPT if style == "chat" else _BASE_PROMPT
        for name, value in (("hints", hints), ("question", fields["question"]), ("schema", schema)):
            text = text.replace(f"{{{name}}}", value)
        if style == "chat":
            return Prompt(messages=({"role": "user", "content": text},), max_tokens=1024)
        return Prompt(text=text, stop=(";\n", "```"), max_tokens=512)

    def clean(self, problem: Problem, raw: str, style: Style) -> Answer:
        return Answer(query_in(split_reasoning(raw).content[:_LONGEST]), whole=True)

    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        query = query_in(answer.text[:_LONGEST])
        if not query:
            return Judgement("failed", "there is no query")
        gold = [{"query": text, "order": _order(text)} for text in problem.fields["gold"]]
        job = json.dumps({"query": query, "gold": gold, "columns": problem.fields["columns"]})
        database = load_database(Path(problem.fields["database"])).content()
        program = Path(sql_program.__file__).read_text(encoding="utf-8")
        result = run(
            python_job(
                f"{program}\n\ncheck('database.sqlite', 'job.json')\n",
                limits=_limits(len(database)),
                files={"database.sqlite": database, "job.json": to_bytes(job)},
            )
        )
        if result.exit_code == sql_program.GOLD_FAILED:
            return Judgement("harness error", result.stdout.strip()[:2000], waited_seconds=result.waited_seconds)
        return judgement_of(result)

    def gold(self, problem: Problem) -> Answer | None:
        return Answer(problem.fields["gold"][0], whole=True)

    def preload(self) -> Sequence[str]:
        return ("sqlite3", "json", "dataclasses")


def _limits(size: int) -> Limits:
    """A large database needs room for its copy."""
    return Limits(cpu_seconds=_CPU_SECONDS, memory=1024 * MIB + 2 * size, disk=64 * MIB + size)


def _order(query: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]] | None:
    terms = order_terms(query)
    return None if terms is None else [(term.whole, term.parts) for term in terms]


_Fields = dict[str, Any]


def _read_csv(file: Path) -> Iterator[tuple[_Fields, str]]:
    """sql-eval's questions, numbered within the file: `questions_gen_sqlite/0`."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CodemillError(f"{file}: not UTF-8 text") from None
    except OSError as error:
        raise CodemillError(f"{file}: {error.strerror or error}") from None
    rows = csv.DictReader(io.StringIO(text, newline=""))
    for number, row in enumerate(rows):
        where = f"{file}, line {rows.line_num}"
        for name in ("db_name", "query", "question"):
            if not (row.get(name) or "").strip():
                raise CodemillError(f"{where}: the row has no {name}")
        hints = row.get("full_instructions") or row.get("instructions") or ""
        yield {**_named(row), "task_id": f"{file.stem}/{number}", "hints": hints, "columns": "subset"}, where


def _named(row: Mapping[str, Any]) -> _Fields:
    """A row of the CSV under the names of the other formats; what has no heading is left out."""
    named = {key: value for key, value in row.items() if isinstance(key, str)}
    return {**named, "db_id": row["db_name"], "gold": alternatives(row["query"])}


def _read_json(file: Path) -> Iterator[tuple[_Fields, str]]:
    key = None
    for number, record in enumerate(read_records(file, {"question": str}, key=None)):
        fields = record.fields
        if key is None:
            key = next((name for name in ("task_id", "question_id", "id") if name in fields), "")
        columns = "same" if "SQL" in fields else "any"
        gold = [record.need(_present(record, ("query", "SQL", "sql")), str)]
        database = record.need(_present(record, ("db_path", "db_id", "db_name")), str)
        task_id = fields.get(key, number) if key else number
        hints = fields.get("evidence") or ""
        yield (
            {**fields, "task_id": task_id, "db_id": database, "gold": gold, "columns": columns, "hints": hints},
            (record.where),
        )


def _present(record: Record, names: Sequence[str]) -> str:
    """The first of the names that the record has; else the first, for the message that it is missing."""
    return next((name for name in names if isinstance(record.fields.get(name), str)), names[0])


def _with_database(file: Path, fields: _Fields, where: str) -> _Fields:
    try:
        path = find_database([file.parent, file.parent.parent], fields["db_id"])
        load_database(path)
    except CodemillError as error:
        raise CodemillError(f"{where}: {error}") from None
    if not fields["gold"]:
        raise CodemillError(f"{where}: there is no gold query")
    return {**fields, "database": str(path)}
