"""The command line from outside: what it prints, how it fails, and how fast it starts."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from codemill import __version__, cli
from codemill.commands import add_verb, models
from codemill.errors import CodemillError
from codemill.presets import PRESETS

CODEMILL = [sys.executable, "-c", "import sys; from codemill.cli import main; sys.exit(main())"]


def codemill(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CODEMILL, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


@pytest.fixture(autouse=True)
def keep_excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` sets the hook for the life of its process."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture
def failing_verb(monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    """`codemill models` fails with a CodemillError of two lines."""

    def fail(*_: object) -> None:
        raise CodemillError("model.safetensors is truncated:\n  download it again")

    monkeypatch.setattr("codemill.presets.find_preset", fail)
    return CodemillError


def last_error(captured: pytest.CaptureFixture[str]) -> str:
    text = captured.readouterr().err
    assert text.count("\n") == 1, text
    return text


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["models", "--help"], ["models"], ["models", "--json"]])
def test_no_torch_is_imported(arguments: list[str]) -> None:
    script = (
        "import sys; from codemill.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'numpy', 'transformers', 'tokenizers', 'rich'} & set(sys.modules);"
        "print(heavy or '', file=sys.stderr); sys.exit(status or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_importing_the_package_imports_no_torch() -> None:
    script = "import sys, codemill, codemill.chat, codemill.config, codemill.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_help_answers_at_once() -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert codemill("--help").returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3


def test_help_names_every_verb() -> None:
    text = codemill("--help").stdout
    for verb in cli.VERBS:
        assert f"\n  {verb} " in text


@pytest.fixture
def nested_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `codemill.commands.mill` with `codemill mill grind WHAT`."""

    def grind(what: str) -> None:
        """Grind it."""
        print(f"ground {what}")

    def register(app: typer.Typer) -> None:
        group = typer.Typer(help="A mill.")
        group.callback()(lambda: None)
        add_verb(group, grind, "codemill mill grind wheat")
        app.add_typer(group, name="mill")

    monkeypatch.setitem(sys.modules, "codemill.commands.mill", SimpleNamespace(register=register))
    monkeypatch.setattr(cli, "VERBS", ("models", "mill"))


@pytest.mark.usefixtures("nested_verb")
def test_a_verb_is_one_file_and_one_line_also_when_nested(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mill", "grind", "wheat"]) == 0
    assert capsys.readouterr().out == "ground wheat\n"
    assert cli.main(["mill", "grind", "--help"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("Examples:\n    codemill mill grind wheat")
    for wrong in (["mill"], ["mill", "grnd"], ["mill", "grind"]):
        assert cli.main(wrong) == 2
        assert "codemill mill" in last_error(capsys)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_help_of_a_verb_ends_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for path in help_pages(verb, capsys):
        assert cli.main([*path, "--help"]) == 0
        _, _, examples = capsys.readouterr().out.partition("Examples:\n")
        lines = examples.strip().splitlines()
        assert lines
        assert all(f"codemill {' '.join(path)}" in line for line in lines)


def test_a_verb_with_verbs_has_examples_and_wants_one_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    assert "Examples:\n    codemill train pretrain" in capsys.readouterr().out
    assert cli.main(["train"]) == 2
    assert last_error(capsys) == "codemill: error: Missing command (see 'codemill train --help')\n"


def help_pages(verb: str, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The verb itself, or the verbs below it."""
    assert cli.main([verb, "--help"]) == 0
    commands = capsys.readouterr().out.partition("\nCommands:\n")[2].partition("\n\n")[0]
    return [[verb, line.split()[0]] for line in commands.splitlines() if re.match(r"  \S", line)] or [[verb]]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"codemill {__version__}\n"


def test_no_verb_prints_the_help_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Commands:" in captured.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["modles"], "Did you mean 'models'?"),
        (["models", "--jsn"], "--jsn"),
        (["models", "a", "b"], "(b)"),
        (["models", "qwen3-0.6"], "did you mean qwen3-0.6b"),
        (["models", ""], "unknown preset ''"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    error = last_error(capsys)
    assert error.startswith("codemill: error: ")
    assert named in error


@pytest.mark.usefixtures("failing_verb")
def test_failed_work_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "x"]) == 1
    assert last_error(capsys) == "codemill: error: model.safetensors is truncated: download it again\n"


@pytest.mark.usefixtures("failing_verb")
@pytest.mark.parametrize(
    "arguments", [["--debug", "models", "x"], ["models", "--debug", "x"], ["models", "x", "--debug"]]
)
def test_debug_shows_the_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.splitlines()[-1].startswith("codemill: error: ")


def test_after_two_dashes_debug_is_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--", "--debug"]) == 2
    assert "unknown preset '--debug'" in last_error(capsys)


def test_an_operating_system_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise PermissionError(13, "Permission denied", "out.json")

    monkeypatch.setattr("codemill.footprint.available_memory", fail)
    assert cli.main(["models"]) == 1
    assert last_error(capsys) == "codemill: error: [Errno 13] Permission denied: 'out.json'\n"


def test_an_unforeseen_error_is_one_line_without_debug() -> None:
    script = (
        "import sys, codemill.presets; from codemill.cli import main; "
        "codemill.presets.find_preset = None; sys.exit(main())"
    )

    def run(*extra: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, "models", "x", *extra]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    plain = run()
    assert plain.returncode == 1
    assert plain.stderr.startswith("codemill: internal error: TypeError: ")
    assert plain.stderr.count("\n") == 1
    assert "Traceback" in run("--debug").stderr


@pytest.mark.parametrize("kind", [KeyboardInterrupt, typer.Abort])
def test_an_interrupt_is_quiet(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise kind

    monkeypatch.setattr("codemill.footprint.available_memory", interrupt)
    assert cli.main(["models"]) == 130
    assert capsys.readouterr().err == ""


def test_ctrl_c_ends_a_running_verb_with_130() -> None:
    script = (
        "import sys, time, codemill.footprint; from codemill.cli import main; "
        "codemill.footprint.available_memory = lambda: print('ready', flush=True) or time.sleep(60); sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "")


@pytest.mark.parametrize("arguments", [["models"], ["--help"]])
def test_a_closed_pipe_ends_quietly(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*CODEMILL, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*CODEMILL, "models"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("codemill: error: ")
    assert done.stderr.count("\n") == 1


def test_a_terminal_without_unicode_gets_a_substitute() -> None:
    script = "import sys; from codemill import cli; cli._invoke = lambda _: print('é') or 0; sys.exit(cli.main([]))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "?\n", "")


def test_models_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("codemill.footprint.available_memory", lambda: 3_500_000_000)
    assert cli.main(["models", "--json"]) == 0
    listed = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert list(listed) == list(PRESETS)
    coder = listed["qwen3-coder-next"]
    assert coder == {
        "name": "qwen3-coder-next",
        "hub_id": "Qwen/Qwen3-Coder-Next",
        "parameters": 79_674_391_296,
        "active_parameters": 3_874_929_408,
        "context": 262_144,
        "memory": {
            "fp32": 318_697_565_184,
            "bf16": 159_348_782_592,
            "fp8": 79_674_391_296,
            "int8": 84_707_046_912,
            "int4": 44_898_121_216,
        },
        "kv_bytes_per_1k_tokens": 24_576_000,
        "state_bytes": 79_036_416,
        "fits": [],
    }
    assert listed["qwen3-0.6b"]["fits"] == ["fp32", "bf16", "fp8", "int8", "int4"]
    assert listed["qwen3-1.7b"]["fits"] == ["fp8", "int8", "int4"]


def test_one_model_as_json_is_still_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "QWEN3-8B", "--json"]) == 0
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == ["qwen3-8b"]


@pytest.mark.parametrize("columns", [80, 200])
def test_the_table_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("codemill.footprint.available_memory", lambda: 10_000_000_000_000)
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    rows = {line.split()[0]: line.split()[1:] for line in lines[2 : 2 + len(PRESETS)]}
    assert list(rows) == list(PRESETS)
    figures = ["480.2", "35.47", "262,144", "1921", "960", "510", "270", "254", "-", "fp32"]
    hub_id = ["Qwen/Qwen3-Coder-480B-A35B-Instruct"] if columns >= models.WIDE else []
    assert rows["qwen3-coder-480b-a35b"] == figures + hub_id


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("qwen3-0.6b", ["596,049,920", "40,960 tokens", "28 (28 full attention)", "1.19 GB"]),
        ("qwen3-30b-a3b", ["3,353,032,704", "8 of 128 experts per token"]),
        ("qwen3-coder-next", ["36 Gated DeltaNet", "75.5 MB recurrent + 3.5 MB conv", "24.6 MB for 1,000 tokens"]),
    ],
)
def test_one_model_in_detail(name: str, facts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", name]) == 0
    text = capsys.readouterr().out
    for fact in facts:
        assert fact in text
