"""The whole program against a real server: a bug is found, mended, and the tests are run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("pathspec")
pytest.importorskip("httpx")

from agent.fakes import call
from codemill.engine.scripted import ScriptedEngine
from codemill.server.registry import Registry
from codemill.server.settings import ServerSettings
from server.live import LiveServer

CODE = "def add(a, b):\n    return a - b\n"
TEST = "from sums import add\n\nassert add(2, 3) == 5, add(2, 3)\nprint('all is well')\n"
STEPS = [
    call("grep_search", pattern="def add"),
    call("read_file", absolute_path="sums.py"),
    call("run_shell_command", command="python3 check.py"),
    call("edit", file_path="sums.py", old_string="    return a - b", new_string="    return a + b"),
    call("run_shell_command", command="python3 check.py"),
    "`add` subtracted. I mended it, and check.py passes.",
]


def script(prompt: str) -> str:
    """What comes next depends on how many results there are in the prompt."""
    return STEPS[prompt.count("<tool_response>")]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    (root / "sums.py").write_text(CODE)
    (root / "check.py").write_text(TEST)
    return root


@pytest.fixture
def url():
    live = LiveServer(Registry.of(ScriptedEngine(script), "scripted"), ServerSettings())
    yield live.url
    live.stop()


def run(repository: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    home = repository.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
    command = [sys.executable, "-m", "codemill", "agent", "-C", str(repository), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, input=stdin, env=environment, timeout=120, check=False
    )


def skip_without_isolation(done: subprocess.CompletedProcess[str]) -> None:
    if "isolat" in done.stderr:
        pytest.skip(done.stderr.strip())


def test_a_bug_is_mended(repository, url):
    done = run(
        repository, "--endpoint", url, "-p", "check.py fails: mend it", "--mode", "yolo", "--output-format", "json"
    )
    skip_without_isolation(done)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["status"], outcome["steps"]) == ("finished", 6)
    assert outcome["text"] == STEPS[-1]
    results = [each["text"] for each in outcome["calls"]]
    assert results[0] == "sums.py:1:def add(a, b):"
    assert "AssertionError: -1" in results[2]
    assert results[4] == "all is well"
    assert (repository / "sums.py").read_text() == CODE.replace("-", "+")
    again = run(repository, "--endpoint", url, "--continue", "-p", "thanks", "--output-format", "json")
    assert json.loads(again.stdout)["session_id"] == outcome["session_id"]


def test_without_approval_nothing_is_run(repository, url):
    done = run(repository, "--endpoint", url, "-p", "mend it", "--mode", "plan", "--output-format", "json")
    skip_without_isolation(done)
    outcome = json.loads(done.stdout)
    assert "plan mode" in outcome["calls"][2]["text"]
    assert "plan mode" in outcome["calls"][3]["text"]
    assert (repository / "sums.py").read_text() == CODE


def test_a_stream_of_events(repository, url):
    done = run(repository, "--endpoint", url, "--mode", "yolo", "--output-format", "stream-json", stdin="mend it")
    skip_without_isolation(done)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["name"] for event in events if event["type"] == "call"][-1] == "run_shell_command"
    assert events[-1]["type"] == "outcome"
    assert "".join(event["text"] for event in events if event["type"] == "text").endswith(STEPS[-1])


def test_budgets_have_a_status_of_their_own(repository, url):
    done = run(repository, "--endpoint", url, "-p", "mend it", "--mode", "yolo", "--max-steps", "2")
    skip_without_isolation(done)
    assert done.returncode == 3
    assert "stopped after 2 steps" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-p", "x", "--endpoint", "nonsense"], "give a URL"),
        (["-p", "x", "--mode", "wild"], "choose plan, default, auto-edit, yolo"),
        (["-p", "x", "--continue", "--endpoint", "http://127.0.0.1:9"], "no session"),
        (["-p", "  "], "nothing to do"),
    ],
)
def test_wrong_commands(repository, arguments, told):
    done = run(repository, *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") <= 2


def test_a_workflow(repository):
    steps = [f"{STEPS[1]}\n{STEPS[3]}", "Mended."]
    engine = ScriptedEngine(lambda prompt: steps[min(prompt.count("<tool_response>"), 1)])
    live = LiveServer(Registry.of(engine, "scripted"), ServerSettings())
    arguments = ["fix", "python3 check.py", "-C", str(repository), "--endpoint", live.url]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "codemill", "agent", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": str(repository.parent / "home")},
            timeout=120,
            check=False,
        )
    finally:
        live.stop()
    skip_without_isolation(done)
    assert done.returncode == 0, done.stderr
    assert "+    return a + b" in done.stdout
    assert "`python3 check.py` passes now" in done.stderr
    assert (repository / "sums.py").read_text() == CODE.replace("-", "+")
