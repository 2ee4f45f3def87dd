"""`codemill agent fix`, with a model whose replies are written down."""

import json
import subprocess
import sys

import pytest

from agent.fakes import call
from codemill.agent.budget import Budget
from codemill.agent.scripted_model import ScriptedModel
from codemill.agent.workbench import AgentOptions
from codemill.agent.workflows.fix import FixTask, exact_rules, fix
from codemill.agent.workflows.test_files import is_configuration, is_test
from codemill.cli import main
from codemill.commands import agent_options
from codemill.sandbox.worker import IsolationError

WRONG = "def add(a, b):\n    return a - b\n"
RIGHT = "def add(a, b):\n    return a + b\n"
TEST = "from sums import add\n\nassert add(1, 2) == 3, add(1, 2)\nprint('all well')\n"
COMMAND = f"{sys.executable} -B tests/test_sums.py"
MEND = f"{call('read_file', absolute_path='sums.py')}\n{call('write_file', file_path='sums.py', content=RIGHT)}"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A Git repository with a bug, and a home directory that is nobody's."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home/state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/config"))
    root = tmp_path / "project"
    (root / "tests").mkdir(parents=True)
    (root / "sums.py").write_text(WRONG)
    (root / "tests/test_sums.py").write_text(f"import sys\nsys.path.insert(0, '.')\n{TEST}")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


def run(root, replies, command=COMMAND, budget=None, **task):
    model = ScriptedModel(replies)
    options = AgentOptions(root, mode="auto-edit", budget=budget or Budget())
    try:
        return fix(FixTask(command, 60.0, **task), options, model), model
    except IsolationError as error:
        pytest.skip(str(error))


def test_a_bug_is_fixed(project):
    report, model = run(project, [MEND, "Mended."])
    assert (report.status, report.exit_status, report.rounds, report.steps) == ("passed", 0, 1, 2)
    assert "-    return a - b\n+    return a + b\n" in report.diff
    assert "AssertionError: -1" in model.seen[0][-1]["content"]
    assert report.output == "all well\n"
    assert (project / "sums.py").read_text() == RIGHT


def test_what_passes_is_left_alone(project):
    report, model = run(project, [], command="true")
    assert (report.status, report.rounds, report.diff, model.seen) == ("passed", 0, "", [])


def test_the_model_is_not_believed(project):
    report, model = run(project, ["It passes.", "All tests pass now.", f"Well.\n{MEND}", "Mended."])
    assert (report.status, report.rounds) == ("passed", 3)
    assert "still fails" in model.seen[1][-1]["content"]
    report, _ = run(project, ["It passes."] * 6, command="false")
    assert (report.status, report.exit_status, report.rounds) == ("failed", 1, 6)
    assert "6 times" in report.reason


def cheat():
    read = call("read_file", absolute_path="tests/test_sums.py")
    return f"{read}\n{call('write_file', file_path='tests/test_sums.py', content='print(1)')}"


def test_changed_tests_are_put_back(project):
    before = (project / "tests/test_sums.py").read_text()
    report, model = run(project, [cheat(), "It passes.", MEND, "Mended."])
    assert (report.status, report.rounds, report.put_back) == ("passed", 2, ("tests/test_sums.py",))
    assert (project / "tests/test_sums.py").read_text() == before
    assert "put back" in model.seen[2][-1]["content"]
    assert "test_sums" not in report.diff


def test_a_deleted_test_and_a_new_configuration_are_put_back(project):
    wrong = call("write_file", file_path="conftest.py", content="collect_ignore_glob = ['*']")
    new = call("write_file", file_path="tests/test_more.py", content="print(2)")

    def delete(messages):
        (project / "tests/test_sums.py").unlink(missing_ok=True)
        return next(replies)

    replies = iter([f"{wrong}\n{new}", *["Done."] * 6])
    report, _ = run(project, delete)
    assert report.status == "failed"
    assert set(report.put_back) == {"tests/test_sums.py", "conftest.py"}
    assert (project / "tests/test_sums.py").exists()
    assert not (project / "conftest.py").exists()
    assert (project / "tests/test_more.py").exists()


def test_tests_may_be_changed_if_allowed(project):
    report, _ = run(project, [cheat(), "Done."], may_change_tests=True)
    assert (report.status, report.put_back) == ("passed", ())
    assert "+print(1)" in report.diff


def test_the_model_may_run_the_command_and_no_other(project):
    steps = [call("run_shell_command", command=COMMAND), call("run_shell_command", command="touch made"), MEND, "Done."]
    report, model = run(project, steps)
    assert report.status == "passed"
    told = [message["content"] for message in model.seen[-1] if message["role"] == "tool"]
    assert "AssertionError" in told[0]
    assert "refused" in told[1]
    assert not (project / "made").exists()


def test_the_budget_is_for_all_rounds(project):
    report, model = run(project, ["It passes."] * 9, budget=Budget(steps=3))
    assert (report.status, report.exit_status, report.steps, len(model.seen)) == ("budget", 3, 3, 3)


def test_what_was_done_within_the_budget_counts(project):
    report, _ = run(project, [MEND], budget=Budget(steps=1))
    assert (report.status, report.steps) == ("passed", 1)


def test_files_that_may_decide_what_is_tested_are_named(project):
    config = call("write_file", file_path="pyproject.toml", content="[tool.pytest.ini_options]\n")
    report, _ = run(project, [f"{config}\n{MEND}", "Done."])
    assert report.doubtful == ("pyproject.toml",)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("tests/data/a.json", "test"),
        ("src/test_a.py", "test"),
        ("pkg/a_test.go", "test"),
        ("web/a.spec.ts", "test"),
        ("src/latest.py", ""),
        ("src/contest/a.py", ""),
        ("conftest.py", "configuration"),
        ("web/jest.config.mjs", "configuration"),
    ],
)
def test_kinds_of_files(path, kind):
    assert (is_test(path), is_configuration(path)) == (kind == "test", kind == "configuration")


def test_rules_for_a_command():
    assert exact_rules("cd web && npm test -- --run 'a b'") == ["cd web", "npm test -- --run 'a b'"]
    assert exact_rules("pytest $(cat x)") in ([], ["cat x"])


@pytest.mark.parametrize(("replies", "status"), [([MEND, "Mended."], 0), (["Done."] * 6, 1)])
def test_the_verb(project, monkeypatch, capsys, replies, status):
    monkeypatch.setattr(agent_options, "choose_model", lambda *_: ScriptedModel(replies))
    found = main(["agent", "fix", COMMAND, "-C", str(project), "--json"])
    out, err = capsys.readouterr()
    if "isolat" in err:
        pytest.skip(err)
    assert found == status
    assert json.loads(out)["status"] == ("failed" if status else "passed")
    assert f"running {COMMAND}" in err


def test_a_command_that_is_not_there(project, monkeypatch, capsys):
    monkeypatch.setattr(agent_options, "choose_model", lambda *_: ScriptedModel([]))
    found = main(["agent", "fix", "no-such-program-here", "-C", str(project)])
    err = capsys.readouterr().err
    if "isolat" in err:
        pytest.skip(err)
    assert found == 1
    assert "cannot be run" in err
    assert "not found" in err


def test_options_before_the_workflow_are_refused(project, capsys):
    assert main(["agent", "--model", "x", "fix", "true"]) == 2
    assert "--model stands before fix" in capsys.readouterr().err
