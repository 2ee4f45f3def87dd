"""`codemill agent sql`: a question to a database."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.commands import add_verb, agent_options, options, print_json
from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill.agent.workflows.sql import SqlAnswer

EXAMPLES = """
codemill agent sql shop.sqlite 'Which five customers spent most?'
codemill agent sql shop.sqlite 'Sales by month in 2025' --yes --csv > sales.csv
"""


def register(group: typer.Typer) -> None:
    add_verb(group, sql, EXAMPLES)


def sql(
    database: Annotated[Path, typer.Argument(metavar="DB", help="An SQLite file; it is only read.")],
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    model: options.Model = None,
    endpoint: agent_options.Endpoint = None,
    api_key: agent_options.ApiKey = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a query is run.")] = False,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds for one query.")] = 10.0,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows that are fetched.")] = 200,
    as_json: options.AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    temperature: options.Temperature = None,
    quantization: options.Quantization = None,
    max_model_len: options.MaxModelLen = None,
    threads: options.Threads = None,
    prefix_cache_dir: options.PrefixCacheDir = None,
) -> None:
    """Answer a question about a database: the query is shown, and can only read; in a terminal you are asked first."""
    from codemill.agent.headless import HeadlessOutput
    from codemill.agent.workflows import sql as workflow
    from codemill.agent.workflows.database import Database

    if as_json and as_csv:
        raise UsageError("give --json or --csv, not both")
    if not question.strip():
        raise UsageError("the question is empty")
    is_asking = not yes and sys.stdin.isatty() and sys.stderr.isatty()
    with Database(database, timeout, max_rows) as opened:
        asked = agent_options.choose_model(
            model, endpoint, api_key, temperature, max_model_len, quantization, threads, prefix_cache_dir
        )
        approve = _ask if is_asking else _show
        found = workflow.answer(question, opened, asked, approve, HeadlessOutput("text").listener)
    _print(found, as_json, as_csv)


def _show(query: str) -> bool:
    from codemill.agent.workflows.visible import visible

    print(visible(query), file=sys.stderr, flush=True)
    return True


def _ask(query: str) -> bool:
    _show(query)
    return typer.confirm("Run it?", default=True, err=True)


def _print(found: "SqlAnswer", as_json: bool, as_csv: bool) -> None:
    from codemill.agent.workflows.table import csv_text, plain, table_lines

    rows = found.rows
    if as_json:
        values = [[plain(value) for value in row] for row in rows.rows]
        print_json({"sql": found.sql, "columns": rows.columns, "rows": values, "is_cut": rows.is_cut})
    elif as_csv:
        print(csv_text(rows), end="")
    else:
        print("\n".join(table_lines(rows)))
    more = ", and there are more: give --max-rows" if rows.is_cut else ""
    print(f"[{len(rows.rows)} rows{more}; {rows.seconds:.2f} s]", file=sys.stderr)
