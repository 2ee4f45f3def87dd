"""The parts of an agent together."""

from pathlib import Path

import pytest

pytest.importorskip("pathspec")

from agent.fakes import call
from codemill.agent.approval import NobodyToAsk
from codemill.agent.budget import Budget
from codemill.agent.scripted_model import ScriptedModel
from codemill.agent.session import Session
from codemill.agent.workbench import SECOND_AGENT, AgentOptions, Workbench
from codemill.sandbox.worker import IsolationError

TODOS = '[{"content": "write the tests", "status": "pending"}]'


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def workbench(root: Path, model: ScriptedModel, session: Session) -> Workbench:
    return Workbench(AgentOptions(root, "yolo"), model, session, NobodyToAsk())


def test_what_a_second_agent_did_can_be_undone(root):
    def reply(messages):
        if messages[0]["content"].endswith(SECOND_AGENT):
            return call("write_file", file_path="new.txt", content="1") if len(messages) == 2 else "It is written."
        if messages[-1]["role"] == "tool":
            return "Done."
        return call("task", description="write", prompt="write it", subagent_type="general-purpose")

    try:
        with workbench(root, ScriptedModel(reply), Session()) as bench:
            assert bench.agent.run("do it").text == "Done."
            assert (root / "new.txt").exists()
            assert bench.history.plan_undo().foreign == frozenset()
            bench.history.undo()
            assert not (root / "new.txt").exists()
            bench.history.redo()
            assert (root / "new.txt").read_text() == "1"
    except IsolationError as error:
        pytest.skip(str(error))


def test_todos_are_kept_when_a_session_goes_on(root, tmp_path):
    path = tmp_path / "s.jsonl"
    model = ScriptedModel([call("todo_write", todos=TODOS), "Later.", "So far."])
    try:
        with workbench(root, model, Session.create(path)) as bench:
            bench.agent.run("do it")
        with workbench(root, model, Session.load(path)) as bench:
            bench.agent.compact()
            assert "write the tests" in bench.session.messages[1]["content"]
    except IsolationError as error:
        pytest.skip(str(error))


def test_second_agents_spend_what_the_first_one_may(root):
    def reply(messages):
        if messages[0]["content"].endswith(SECOND_AGENT):
            return call("glob", pattern=f"{len(messages)}")
        return call("task", description=f"{len(messages)}", prompt="look", subagent_type="explore")

    options = AgentOptions(root, "yolo", Budget(steps=6))
    model = ScriptedModel(reply)
    try:
        with Workbench(options, model, Session(), NobodyToAsk()) as bench:
            outcome = bench.agent.run("do it")
    except IsolationError as error:
        pytest.skip(str(error))
    assert (outcome.status, outcome.steps, len(model.seen)) == ("budget", 6, 6)
