"""Text-to-SQL: SQL as text, PostgreSQL's dialect, comparing results, the three formats, and that nothing is written."""

import csv
import hashlib
import json
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.eval.sql_database import find_database, load_database
from codemill.eval.sql_dialect import to_sqlite
from codemill.eval.sql_program import Table, difference
from codemill.eval.sql_text import alternatives, order_terms, query_in, statements
from codemill.eval.suite import Answer, Problem, Run, SuiteOptions
from codemill.eval.text_to_sql import TextToSql
from codemill.sandbox.job import Job, Limits
from codemill.sandbox.result import RunResult

SUITE = TextToSql()


# SQL as text


def test_statements_end_outside_of_strings_and_comments() -> None:
    text = "SELECT ';' AS \"a;b\", [x;y] -- ;\n, 'it''s;' /* ; */;; \n-- nothing\n;SELECT 2"
    assert list(statements(text)) == ["SELECT ';' AS \"a;b\", [x;y] -- ;\n, 'it''s;' /* ; */", "SELECT 2"]


@pytest.mark.parametrize(
    ("answer", "query"),
    [
        ("SELECT 1;\nThat is it.", "SELECT 1"),
        ("  with t as (select 1) select * from t", "with t as (select 1) select * from t"),
        ("Here:\n```sql\nSELECT ';';\n```\nDone; really.", "SELECT ';'"),
        ("First ```SELECT 0``` then\n```\nSELECT 1\n```", "SELECT 1"),
        ("SELECT 1\n```\nThe query selects.\n```sql\nSELECT 2\n```", "SELECT 1"),
        ("The answer is\nSELECT 1", "SELECT 1"),
        ("DROP TABLE t", "DROP TABLE t"),
        ("", ""),
        ("-- only a comment", ""),
    ],
)
def test_the_query_in_an_answer(answer: str, query: str) -> None:
    assert query_in(answer) == query
    assert query_in(query) == query


def test_gold_alternatives() -> None:
    assert alternatives("SELECT 'a;b'; SELECT 2;") == ["SELECT 'a;b'", "SELECT 2"]
    assert alternatives("SELECT {a, f(b, c)}, n FROM t GROUP BY {} ORDER BY n") == [
        "SELECT a, n FROM t GROUP BY a ORDER BY n",
        "SELECT f(b, c), n FROM t GROUP BY f(b, c) ORDER BY n",
        "SELECT a, f(b, c), n FROM t GROUP BY a, f(b, c) ORDER BY n",
    ]
    assert alternatives("SELECT '{a,b}'") == ["SELECT '{a,b}'"]


def test_what_a_query_is_ordered_by() -> None:
    assert order_terms("SELECT a FROM t WHERE x IN (SELECT y FROM u ORDER BY y)") is None
    terms = order_terms('SELECT t.a, COUNT(*) AS n FROM t ORDER BY COUNT(*) DESC NULLS LAST, t."A", 1, a || b LIMIT 3')
    assert terms is not None
    assert [term.whole[-1] for term in terms] == ["n", "a", "1", "a||b"]
    assert terms[3].parts == ("a", "b")


# PostgreSQL made into SQLite


def translated(script: str) -> sqlite3.Connection:
    """A script as `load_database` makes it."""
    connection = sqlite3.connect(":memory:")
    for statement in to_sqlite(script):
        connection.execute(statement)
    return connection


def test_a_dump_of_postgresql() -> None:
    connection = translated(
        """
        SET client_encoding = 'UTF8';
        CREATE SCHEMA IF NOT EXISTS shop;
        CREATE TYPE mood AS ENUM ('sad', 'ok');
        CREATE TABLE shop.item (id SERIAL PRIMARY KEY,
            name character varying(20) DEFAULT 'x'::character varying NOT NULL,
            made timestamp without time zone DEFAULT now(), n bigint DEFAULT nextval('shop.seq'::regclass),
            price numeric(10,2) DEFAULT '0'::numeric(10,2), note text DEFAULT lower('NONE'::text));
        -- a comment; with a semicolon
        INSERT INTO shop.item (name, price, n) VALUES ('a::b; INTERVAL', 1.5, 1), ('c', 2::int, NULL);
        ALTER TABLE ONLY shop.item ADD CONSTRAINT pk PRIMARY KEY (id);
        CREATE UNIQUE INDEX i ON shop.item USING btree (name);
        """
    )
    rows = connection.execute("SELECT id, name, price, n, note FROM item").fetchall()
    assert rows == [(1, "a::b; INTERVAL", 1.5, 1, "none"), (2, "c", 2, None, "none")]


def test_dates_of_postgresql(tmp_path: Path) -> None:
    script = tmp_path / "days.sql"
    script.write_text(
        """
        CREATE TABLE public.day (name text, value text);
        INSERT INTO day VALUES
            ('months', DATE '2024-03-31' - INTERVAL '1 month'),
            ('chain', '2024-01-30' + INTERVAL '1 month' - INTERVAL '2 days'),
            ('minutes', TIMESTAMP '2024-01-01 23:50:00' + INTERVAL '15 min'),
            ('of date', '2024-01-01' + INTERVAL '90 minutes'),
            ('week', DATE_TRUNC('week', '2024-05-15')),
            ('quarter', DATE_TRUNC('quarter', '2024-05-15 10:11:12')),
            ('trunc', DATE_TRUNC('month', ('2024-05-15')) + INTERVAL '1 year'),
            ('epoch', EXTRACT(EPOCH FROM TIMESTAMP '1970-01-02 00:00:01') * 1000),
            ('year', EXTRACT(YEAR FROM '2024-05-15' - INTERVAL '6 months')),
            ('text', TO_CHAR('2024-05-05' - INTERVAL '1 month', 'DD Month YYYY')),
            ('null', NULL - INTERVAL '1 day'),
            ('minus', 7 - 2);
        """
    )
    connection = sqlite3.connect(":memory:")
    connection.deserialize(load_database(script).content())
    assert dict(connection.execute("SELECT name, value FROM day")) == {
        "months": "2024-02-29",
        "chain": "2024-02-27",
        "minutes": "2024-01-02 00:05:00",
        "of date": "2024-01-01 01:30:00",
        "week": "2024-05-13",
        "quarter": "2024-04-01 00:00:00",
        "trunc": "2025-05-01",
        "epoch": "86401000",
        "year": "2023",
        "text": "05 April 2024",
        "null": None,
        "minus": "5",
    }


# Comparing results

TWO = Table(("a", "b"), [(1, "x"), (2, "y")])


def differs(gold: Sequence[Any], predicted: Sequence[Any], columns: str = "any", order: Any = None) -> str:
    names = tuple("abcdef")
    return difference(Table(names[: len(gold[0])], gold), Table(names[: len(predicted[0])], predicted), columns, order)


def test_rows_are_a_multiset() -> None:
    assert differs([(1,), (1,), (2,)], [(2,), (1,), (1,)]) == ""
    assert differs([(1,), (1,), (2,)], [(2,), (2,), (1,)]) != ""
    assert "2 rows instead of 3" in differs([(1,), (1,), (2,)], [(1,), (2,)])


def test_order_where_gold_has_one() -> None:
    rows, swapped = [(1, "x"), (1, "y"), (2, "z")], [(1, "y"), (1, "x"), (2, "z")]
    by_a = [[("a",), ("a",)]]
    assert differs(rows, swapped) == ""
    assert differs(rows, swapped, order=by_a) == ""  # equal by what they are ordered by
    assert "another order" in differs(rows, swapped, order=[[("a",), ("a",)], [("b",), ("b",)]])
    assert "another order" in differs(rows, rows[::-1], order=by_a)
    assert "another order" in differs(rows, swapped, order=[[("elsewhere",), ("elsewhere",)]])
    assert differs(rows, swapped, order=[[("1",), ()]]) == ""
    assert "another order" in differs(rows, swapped, order=[[("casewhenbisnull",), ("b",)]])


def test_columns() -> None:
    gold, swapped = [(1, "x"), (2, "y")], [("x", 1), ("y", 2)]
    more = [("x", 0, 1), ("y", 0, 2)]
    for columns, of_swapped, of_more in (("same", False, False), ("any", True, False), ("subset", True, True)):
        assert (differs(gold, swapped, columns) == "") == of_swapped
        assert (differs(gold, more, columns) == "") == of_more
    assert differs(more, gold, "subset") != ""
    # Equal columns by themselves, but not row by row; and the right ones have to be found among equal ones.
    assert "rows differ" in differs([(1, 1), (2, 2)], [(1, 2), (2, 1)])
    assert differs([(1, 2, 5), (2, 1, 6)], [(2, 1, 5), (1, 2, 6)]) == ""


def test_values() -> None:
    assert differs([(0.1 + 0.2, None)], [(0.3, None)]) == ""
    assert differs([(2.0,)], [(2,)]) == ""
    for other in (3, 2.001, "2", b"2", None):
        assert differs([(2,)], [(other,)]) != ""
    assert differs([(12345678,)], [(12345679,)]) != ""


def test_empty_results() -> None:
    empty = Table(("a",), [])
    assert difference(empty, Table(("x",), []), "subset", None) == ""
    assert "2 columns" in difference(empty, Table(("x", "y"), []), "subset", None)
    assert "no query" in difference(empty, Table((), []), "any", None)


def test_many_equal_columns_end() -> None:
    rows = [(1, 1, 1, 1, 1, 1, 1, 1, i) for i in range(2)]
    wrong = [(1, 1, 1, 1, 1, 1, 1, i, 1) for i in range(2)]
    names = tuple("abcdefghi")
    assert difference(Table(names, rows), Table(names, wrong), "any", None) == ""


# The suite


@pytest.fixture
def spider(tmp_path: Path) -> Path:
    """A folder in Spider's layout with one database."""
    folder = tmp_path / "database" / "shop"
    folder.mkdir(parents=True)
    with sqlite3.connect(folder / "shop.sqlite") as connection:
        connection.executescript(
            "CREATE TABLE item (name TEXT, price REAL, sold INTEGER);"
            "INSERT INTO item VALUES ('cup', 2.5, 7), ('pot', 9, 7), ('pan', 20, 1);"
            "CREATE VIEW cheap AS SELECT * FROM item WHERE price < 10;"
        )
    questions = [
        {"db_id": "shop", "question": "Which?", "query": "SELECT name, sold FROM item ORDER BY sold DESC"},
        {"db_id": "shop", "question": "How many?", "query": "SELECT COUNT(*) FROM cheap"},
    ]
    (tmp_path / "dev.json").write_text(json.dumps(questions))
    return tmp_path


def verdict(problem: Problem, query: str, run: Run) -> str:
    return SUITE.judge(problem, Answer(query), run).verdict


def test_spider(spider: Path, run: Run) -> None:
    which, how_many = SUITE.load(spider)
    assert (which.task_id, how_many.task_id) == ("0", "1")
    assert verdict(which, "SELECT name, sold FROM item ORDER BY sold DESC, name DESC", run) == "ok"
    assert verdict(which, "SELECT sold, name FROM item ORDER BY 1 DESC", run) == "ok"
    assert verdict(which, "SELECT name, sold FROM item ORDER BY sold", run) == "failed"
    assert verdict(which, "SELECT name, sold, price FROM item ORDER BY sold DESC", run) == "failed"
    assert verdict(how_many, "Sure:\n```sql\nSELECT 2.0;\n```", run) == "ok"
    assert verdict(how_many, "SELECT 3", run) == "failed"
    for problem in (which, how_many):
        gold = SUITE.gold(problem)
        assert gold is not None
        assert SUITE.judge(problem, gold, run).verdict == "ok"


def test_bird_and_paths(spider: Path, run: Run) -> None:
    records = [
        {
            "question_id": 7,
            "db_id": "shop",
            "question": "?",
            "evidence": "sold is a count",
            "SQL": "SELECT name, sold FROM item",
        },
        {"question_id": 8, "db_path": "database/shop/shop.sqlite", "question": "?", "query": "SELECT 1"},
    ]
    file = spider / "bird.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    bird, by_path = SUITE.load(file)
    assert bird.task_id == "7"
    assert verdict(bird, "SELECT name, sold FROM item ORDER BY 1", run) == "ok"
    assert verdict(bird, "SELECT sold, name FROM item", run) == "failed"
    assert verdict(by_path, "SELECT 1", run) == "ok"
    prompt = SUITE.prompt(bird, "chat")
    assert prompt.messages is not None
    assert "sold is a count" in prompt.messages[0]["content"]


def test_prompts_show_the_schema(spider: Path) -> None:
    problem = SUITE.load(spider)[0]
    chat, base = SUITE.prompt(problem, "chat"), SUITE.prompt(problem, "base")
    assert chat.messages is not None
    assert base.text is not None
    for text in (chat.messages[0]["content"], base.text):
        assert "CREATE TABLE item (name TEXT, price REAL, sold INTEGER);" in text
        assert "CREATE VIEW cheap" in text
        assert "Which?" in text
    assert base.text.endswith("```sql\n")


HOSTILE = [
    "DROP TABLE item",
    "DELETE FROM item",
    "UPDATE item SET price = 0",
    "INSERT INTO item VALUES ('x', 1, 1)",
    "CREATE TABLE other (a)",
    "CREATE TEMP TABLE other AS SELECT 1",
    "ATTACH DATABASE 'other.sqlite' AS other",
    "ATTACH DATABASE 'database.sqlite' AS other",
    "PRAGMA query_only = OFF",
    "PRAGMA writable_schema = ON",
    "PRAGMA table_info(item)",
    "VACUUM INTO 'copy.sqlite'",
    "BEGIN",
    "REINDEX",
    "SELECT writefile('x', 'y')",
    "SELECT load_extension('x')",
    "SELECT * FROM sqlite_master; DROP TABLE item",
    "WITH t AS (SELECT 1) DELETE FROM item",
    "SELECT",
    "NOT SQL AT ALL",
    "",
    "SELECT '\0'",
    "SELECT '\udc80'",
    "SELECT " + "(" * 5_000,
    "SELECT " + "1," * 40_000 + "1",
    "SELECT " + "[a" * 40_000,
]


@pytest.mark.parametrize("query", HOSTILE)
def test_nothing_is_changed(query: str, spider: Path, run: Run) -> None:
    file = spider / "database" / "shop" / "shop.sqlite"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    problem = SUITE.load(spider)[0]
    assert verdict(problem, query, run) == "failed"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before
    assert sorted(path.name for path in file.parent.iterdir()) == ["shop.sqlite"]
    assert verdict(problem, "SELECT name, sold FROM item ORDER BY sold DESC", run) == "ok"


def test_the_connection_refuses_by_itself(spider: Path) -> None:
    """Not only because the sandbox has a copy."""
    from codemill.eval.sql_program import open_read_only

    connection = open_read_only(str(spider / "database" / "shop" / "shop.sqlite"))
    for query in HOSTILE[:13]:
        with pytest.raises(sqlite3.Error):
            connection.execute(query)
    assert connection.execute("SELECT COUNT(*) FROM cheap").fetchall() == [(2,)]


def test_endless_and_endlessly_large_queries(spider: Path, run: Run) -> None:
    def hurried(job: Job) -> RunResult:
        return run(replace(job, limits=Limits(cpu_seconds=1.0, memory=256 << 20)))

    problem = SUITE.load(spider)[0]
    endless = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT {} FROM t"
    assert verdict(problem, endless.format("COUNT(*)"), hurried) == "timeout"
    assert verdict(problem, endless.format("n"), hurried) in ("failed", "timeout", "memory")
    assert verdict(problem, "SELECT zeroblob(900000000)", hurried) in ("failed", "memory")


def test_a_gold_query_that_does_not_run_is_no_failure_of_the_answer(spider: Path, run: Run) -> None:
    problem = SUITE.load(spider)[0]
    broken = Problem("x", {**problem.fields, "gold": ["SELECT 1 FROM nowhere"]})
    judgement = SUITE.judge(broken, Answer("SELECT 1"), run)
    assert judgement.verdict == "harness error"
    assert "no such table: nowhere" in judgement.detail


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"question": "?", "query": "SELECT 1", "db_id": "none"}, "line 1: there is no database 'none'"),
        ({"question": "?", "query": "SELECT 1", "db_id": "../shop"}, "there is no database"),
        ({"question": "?", "query": "SELECT 1"}, "line 1: the record has no field 'db_path'"),
        ({"question": "?", "db_id": "shop"}, "line 1: the record has no field 'query'"),
        ({"question": "?", "query": " ", "db_id": "bad"}, "is no SQLite database"),
    ],
)
def test_faulty_records(record: dict[str, Any], said: str, spider: Path) -> None:
    (spider / "bad.sqlite").write_bytes(b"not a database at all")
    file = spider / "questions.jsonl"
    file.write_text(json.dumps(record) + "\n")
    with pytest.raises(CodemillError) as error:
        SUITE.load(file)
    assert said in str(error.value)


def test_faulty_csv_and_script(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.sql").write_text("CREATE TABLE a (b);\nCREATE NONSENSE;\n")
    file = tmp_path / "questions_gen_sqlite.csv"
    file.write_text("db_name,query,question\nbroken,SELECT 1,?\n")
    with pytest.raises(CodemillError, match=r"line 2: .*broken\.sql: SQLite cannot load it .*: CREATE NONSENSE"):
        SUITE.load(tmp_path)
    file.write_text("db_name,query\nbroken,SELECT 1\n")
    with pytest.raises(CodemillError, match="line 2: the row has no question"):
        SUITE.load(tmp_path)


def test_unknown_variant() -> None:
    with pytest.raises(UsageError, match="questions_gen"):
        TextToSql(SuiteOptions(variant="postgres"))


def test_chinook(tmp_path: Path, shared_data: Path, run: Run) -> None:
    """A real database, named by its path."""
    path = shared_data / "chinook" / "Chinook_Sqlite.sqlite"
    gold = (
        "SELECT ar.Name, COUNT(*) AS n FROM Artist ar JOIN Album al ON al.ArtistId = ar.ArtistId GROUP BY ar.ArtistId"
        " ORDER BY n DESC LIMIT 3"
    )
    (tmp_path / "q.jsonl").write_text(json.dumps({"db_path": str(path), "question": "?", "query": gold}) + "\n")
    (problem,) = SUITE.load(tmp_path / "q.jsonl")
    assert verdict(problem, gold, run) == "ok"
    count = "SELECT COUNT(*) FROM Album WHERE ArtistId = a.ArtistId"
    other = f"SELECT ({count}) AS k, Name FROM Artist a ORDER BY k DESC LIMIT 3"
    assert verdict(problem, other, run) == "ok"
    assert verdict(problem, other.replace("LIMIT 3", "LIMIT 4"), run) == "failed"
    assert verdict(problem, other.replace(" DESC", ""), run) == "failed"


def verdicts(problems: list[Problem], run: Run) -> list[str]:
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda problem: verdict(problem, problem.fields["gold"][0], run), problems))


def test_gold_of_sql_eval(shared_data: Path, run: Run) -> None:
    """All 210 questions of all eleven databases; SQLite loads five of them as they are."""
    problems = SUITE.load(shared_data / "defog_sql")
    assert len(problems) == 210
    assert problems[0].task_id == "questions_gen_sqlite/0"
    assert verdicts(problems, run) == ["ok"] * 210
    # What another question asks for is not what this one asks for.
    by_database: dict[str, list[Problem]] = {}
    for problem in problems:
        by_database.setdefault(problem.fields["db_name"], []).append(problem)
    swapped = [
        Problem(one.task_id, {**one.fields, "gold": [other.fields["gold"][0]], "wanted": one.fields["gold"]})
        for group in by_database.values()
        for one, other in zip(group[::4], group[1::4], strict=False)
    ]
    wrong = [verdict(replace(each, fields={**each.fields, "gold": each.fields["wanted"]}), each.fields["gold"][0], run)
             for each in swapped]  # fmt: skip
    assert wrong.count("failed") >= 0.9 * len(wrong)


@pytest.mark.slow
def test_all_gold_of_sql_eval(shared_data: Path, run: Run) -> None:
    """Also the other files, and each of several gold queries of a question."""
    for variant, count in (("questions_gen", 210), ("instruct_basic", 40), ("instruct_advanced", 64)):
        problems = TextToSql(SuiteOptions(variant=variant)).load(shared_data / "defog_sql")
        assert len(problems) == count
        assert verdicts(problems, run) == ["ok"] * count
        for problem in problems:
            for query in problem.fields["gold"][1:]:
                assert verdict(problem, query, run) == "ok", (problem.task_id, query)


def test_csv_beside_its_databases(shared_data: Path) -> None:
    file = shared_data / "defog_sql" / "sql-eval" / "instruct_advanced_sqlite.csv"
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    problems = SUITE.load(file)
    assert [problem.fields["question"] for problem in problems] == [row["question"] for row in rows]
    prompt = SUITE.prompt(problems[0], "chat")
    assert prompt.messages is not None
    assert rows[0]["full_instructions"].splitlines()[0] in prompt.messages[0]["content"]
    assert find_database([file.parent.parent], "geography").name == "geography.sql"
