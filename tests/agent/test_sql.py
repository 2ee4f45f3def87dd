"""`codemill agent sql`, with a model whose replies are written down, on the Chinook database."""

import csv
import hashlib
import io
import json
import shutil
import sqlite3
import sys
import time

import pytest

from codemill.agent.scripted_model import ScriptedModel
from codemill.agent.workflows.database import Database, QueryError
from codemill.agent.workflows.sql import Declined, answer, read_sql
from codemill.agent.workflows.table import table_lines
from codemill.cli import main
from codemill.commands import agent_options
from codemill.errors import CodemillError, UsageError

GOOD = "SELECT Name, Milliseconds FROM Track ORDER BY Milliseconds DESC LIMIT 2"
SLOW = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def chinook(shared_data, tmp_path):
    path = tmp_path / "data base.sqlite"
    shutil.copy(shared_data / "chinook/Chinook_Sqlite.sqlite", path)
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def block(sql):
    return f"Here you are:\n```sql\n{sql};\n```"


def test_a_question_is_answered(chinook):
    shown = []
    model = ScriptedModel([block(GOOD)])
    with Database(chinook) as database:
        found = answer("Which tracks are longest?", database, model, lambda sql: shown.append(sql) or True)
    with sqlite3.connect(chinook) as oracle:
        assert list(found.rows.rows) == oracle.execute(GOOD).fetchall()
    assert (shown, found.rows.columns, found.failed) == ([GOOD], ("Name", "Milliseconds"), ())
    assert "CREATE TABLE [Track]" in model.seen[0][0]["content"]


def test_a_query_that_fails_is_repaired(chinook):
    model = ScriptedModel([block("SELECT Title FROM Track"), "I think so.", block(GOOD)])
    with Database(chinook) as database:
        found = answer("?", database, model)
    assert found.sql == GOOD
    assert [why for _, why in found.failed] == ["no such column: Title"]
    assert "no such column: Title" in model.seen[1][-1]["content"]
    assert "no SELECT" in model.seen[2][-1]["content"]


def test_three_repairs_and_no_more(chinook):
    model = ScriptedModel([block("SELECT nothing")] * 9)
    with Database(chinook) as database, pytest.raises(CodemillError, match="no query of 4 works"):
        answer("?", database, model)
    assert len(model.seen) == 4


def test_what_the_user_declines_is_not_run(chinook):
    with Database(chinook) as database, pytest.raises(Declined):
        answer("?", database, ScriptedModel([block(GOOD)]), lambda sql: False)


def test_a_model_may_say_that_it_cannot(chinook):
    with Database(chinook) as database, pytest.raises(CodemillError, match="nothing about weather"):
        answer("?", database, ScriptedModel(["CANNOT: nothing about weather"]))


HOSTILE = [
    "DELETE FROM Track",
    "DROP TABLE Track",
    "INSERT INTO Genre VALUES (99, 'x')",
    "UPDATE Track SET Name = 'x'",
    "CREATE TABLE x (y)",
    "CREATE TEMP TABLE x (y)",
    "PRAGMA user_version = 7",
    "PRAGMA table_info(Track)",
    "SELECT * FROM pragma_table_info('Track')",
    "ATTACH '{folder}/other.sqlite' AS other",
    "VACUUM INTO '{folder}/copy.sqlite'",
    "VACUUM",
    "BEGIN IMMEDIATE",
    "REINDEX",
    "ANALYZE",
    "SELECT load_extension('{folder}/x.so')",
    "SELECT 1; DELETE FROM Track",
    "WITH x AS (SELECT 1) DELETE FROM Track",
    "SELECT length(zeroblob(100000000))",
    "SELECT writefile('{folder}/x', 'y')",
    "SELECT readfile('/etc/passwd')",
    "SELECT fts3_tokenizer('simple')",
    SLOW,
]


@pytest.mark.parametrize("sql", HOSTILE)
def test_the_database_can_only_be_read(chinook, sql):
    before, names = digest(chinook), sorted(chinook.parent.iterdir())
    begin = time.monotonic()
    with Database(chinook, timeout=0.3) as database, pytest.raises(QueryError):
        database.query(sql.format(folder=chinook.parent))
    assert time.monotonic() - begin < 5
    assert (digest(chinook), sorted(chinook.parent.iterdir())) == (before, names)


def test_a_slow_query_is_told_from_a_wrong_one(chinook):
    with Database(chinook, timeout=0.1) as database:
        with pytest.raises(QueryError, match=r"more than 0\.1 s"):
            database.query(SLOW)
        assert len(database.query(GOOD).rows) == 2


def test_rows_are_limited(chinook):
    with Database(chinook, max_rows=10) as database:
        cut, whole = database.query("SELECT * FROM Track"), database.query("SELECT * FROM Track LIMIT 10")
    assert (len(cut.rows), cut.is_cut, len(whole.rows), whole.is_cut) == (10, True, 10, False)


def test_a_reader_leaves_nothing_beside_a_database_in_wal_mode(tmp_path):
    path = tmp_path / "x.sqlite"
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE t (x)")
    writer.execute("INSERT INTO t VALUES (1)")
    writer.commit()
    with Database(path) as database:  # while somebody writes
        assert database.query("SELECT x FROM t").rows == ((1,),)
    writer.close()
    before = digest(path)
    with Database(path) as database:
        assert database.query("SELECT x FROM t").rows == ((1,),)
    assert (digest(path), list(tmp_path.iterdir())) == (before, [path])


def test_a_schema_that_is_too_long_is_shown_by_names(tmp_path):
    path = tmp_path / "x.sqlite"
    with sqlite3.connect(path) as writer:
        writer.execute("PRAGMA synchronous = OFF")
        for number in range(300):
            writer.execute(
                f"CREATE TABLE table_{number} (id INTEGER PRIMARY KEY, text VARCHAR(100) NOT NULL DEFAULT '')"
            )
    with Database(path) as database:
        assert database.schema.splitlines()[0] == "table_0(id, text)"


def test_what_is_no_database(tmp_path):
    (tmp_path / "x").write_text("no database")
    with pytest.raises(UsageError, match="no SQLite database"):
        Database(tmp_path / "x")
    with pytest.raises(UsageError, match="cannot be read"):
        Database(tmp_path / "missing")


@pytest.mark.parametrize(
    ("said", "sql"),
    [
        ("SELECT 1;", "SELECT 1"),
        ("<think>SELECT 9</think>\n```\nselect 2\n```", "select 2"),
        ("```sql\n-- the count\nWITH a AS (SELECT 1) SELECT * FROM a\n```", None),
        ("```sqlite\nVALUES (1)\n```", "VALUES (1)"),
    ],
)
def test_queries_in_answers(said, sql):
    assert read_sql(said) == (sql or "-- the count\nWITH a AS (SELECT 1) SELECT * FROM a")


def run(monkeypatch, chinook, *options, sql=GOOD):
    monkeypatch.setattr(agent_options, "choose_model", lambda *_: ScriptedModel([block(sql)]))
    return main(["agent", "sql", str(chinook), "Which?", *options])


def test_the_verb(chinook, monkeypatch, capsys):
    sql = "SELECT 'a\x1b[2Jb' AS Text, 1.5 AS Number, NULL AS None, x'00ff' AS Bytes"
    assert run(monkeypatch, chinook, sql=sql) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[2].split() == ["a\\x1b[2Jb", "1.5", "NULL", "00ff"]
    assert "SELECT" in err
    assert "[1 rows; " in err
    run(monkeypatch, chinook, "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["sql"], told["columns"], len(told["rows"])) == (GOOD, ["Name", "Milliseconds"], 2)
    run(monkeypatch, chinook, "--csv", "--max-rows", "1")
    out, err = capsys.readouterr()
    assert next(csv.reader(io.StringIO(out))) == ["Name", "Milliseconds"]
    assert "there are more" in err


def test_tables(chinook):
    with Database(chinook) as database:
        rows = database.query("SELECT 'a' AS Name, 5 AS n UNION ALL SELECT 'bcdef', NULL UNION ALL SELECT 'x\ny', 12")
    assert list(table_lines(rows)) == ["Name      n", "-----  ----", "a         5", "bcdef  NULL", "x\\ny     12"]


@pytest.mark.parametrize(("typed", "status"), [("n\n", 1), ("y\n", 0), ("\n", 0)])
def test_in_a_terminal_it_asks_first(chinook, monkeypatch, capsys, typed, status):
    keyboard = io.StringIO(typed)
    keyboard.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", keyboard)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(monkeypatch, chinook) == status
    out, err = capsys.readouterr()
    assert f"{GOOD}\nRun it? [Y/n]" in err
    assert ("Name" in out, "was not run" in err) == (not status, bool(status))
    assert run(monkeypatch, chinook, "--yes") == 0
    assert "Run it?" not in capsys.readouterr().err
