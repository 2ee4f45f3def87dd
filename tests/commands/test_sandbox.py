"""`codemill sandbox`: exit statuses, output and one-line errors."""

import json
from pathlib import Path

import pytest

from codemill.sandbox import IsolationError, SandboxPool
from commands.conftest import Run


@pytest.fixture(autouse=True)
def isolated() -> None:
    try:
        SandboxPool(workers=1).close()
    except IsolationError as error:
        pytest.skip(str(error))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text("import sys\nprint('out')\nprint('err', file=sys.stderr)\n")
    return path


def test_a_program_that_ends_well(codemill: Run, program: Path) -> None:
    outcome = codemill("sandbox", program)
    assert (outcome.status, outcome.out) == (0, "out\n")
    assert outcome.err.startswith("err\n[ok; ")


def test_a_program_that_fails(codemill: Run, program: Path) -> None:
    program.write_text("raise SystemExit(3)")
    outcome = codemill("sandbox", program)
    assert outcome.status == 1
    assert "[failed, exit status 3;" in outcome.err


def test_standard_input_comes_from_a_file(codemill: Run, program: Path, tmp_path: Path) -> None:
    program.write_text("print(input())")
    (tmp_path / "input").write_text("hello")
    assert codemill("sandbox", program, "--stdin", tmp_path / "input").out == "hello\n"
    assert codemill("sandbox", program, "--stdin", "-", stdin=b"own").out == "own\n"
    assert codemill("sandbox", program, stdin=b"ignored").status == 1


def test_json(codemill: Run, program: Path) -> None:
    program.write_text("while True: pass")
    outcome = codemill("sandbox", program, "--timeout", "0.2", "--json")
    result = json.loads(outcome.out)
    assert outcome.status == 1
    assert (result["status"], result["exit_code"]) == ("timeout", None)
    assert 0.1 < result["cpu_seconds"] < 2


def test_source_on_standard_input(codemill: Run) -> None:
    outcome = codemill("sandbox", "-", stdin=b"print(6 * 7)")
    assert (outcome.status, outcome.out) == (0, "42\n")


def test_check_has_a_row_for_each_promise(codemill: Run) -> None:
    outcome = codemill("sandbox", "--check", "--json")
    rows = json.loads(outcome.out)
    assert outcome.status == 0
    assert len(rows) > 15
    assert all(row["holds"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--check"),
        (["x.py", "--check"], "--check"),
        (["--check", "--unsafe"], "--unsafe"),
        (["no-such-file.py"], "no-such-file.py"),
    ],
)
def test_wrong_commands(codemill: Run, arguments: list[str], words: str) -> None:
    outcome = codemill("sandbox", *arguments)
    assert outcome.status == 2
    assert words in outcome.error


def test_a_suffix_that_is_no_language(codemill: Run, tmp_path: Path) -> None:
    (tmp_path / "program.xyz").write_text("x")
    outcome = codemill("sandbox", tmp_path / "program.xyz")
    assert outcome.status == 2
    assert ".xyz" in outcome.error
    assert "--language" in outcome.error
