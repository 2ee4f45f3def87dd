"""Plan mode, whenever it is entered."""

from pathlib import Path

import pytest

pytest.importorskip("pathspec")

from agent.fakes import Answers, call
from codemill.agent.approval import NobodyToAsk
from codemill.agent.compaction import BEGINNING
from codemill.agent.plan_mode import AGREED, PLAN_OFF, PLAN_ON, knows_plan, plan_news, without_news
from codemill.agent.scripted_model import ScriptedModel
from codemill.agent.session import Session
from codemill.agent.workbench import SECOND_AGENT, AgentOptions, Workbench
from codemill.sandbox import IsolationError

PLAN = call("exit_plan_mode", plan="1. Write a.txt")
WRITE = call("write_file", file_path="a.txt", content="1")


@pytest.fixture
def open_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    root = tmp_path / "work"
    root.mkdir()
    benches = []

    def begin(replies, answers=(), mode="default", session=None, path=None) -> Workbench:
        session = session or Session.create(path)
        approver = Answers(answers) if answers else NobodyToAsk()
        bench = Workbench(AgentOptions(root, mode), ScriptedModel(replies), session, approver)
        try:
            bench.__enter__()
        except IsolationError as error:
            pytest.skip(str(error))
        benches.append(bench)
        return bench

    yield begin
    for bench in benches:
        bench.__exit__()


def results(bench: Workbench) -> list[str]:
    return [message["content"] for message in bench.session.messages if message["role"] == "tool"]


def users(bench: Workbench) -> list[str]:
    return [message["content"] for message in bench.session.messages if message["role"] == "user"]


def test_a_plan_can_be_presented_when_plan_mode_is_entered_later(open_bench):
    bench = open_bench(["Hello.", PLAN, WRITE, "Done.", "Yes."], ["always"])
    bench.agent.run("hello")
    schemas, beginning = bench.toolbox.schemas, bench.session.messages[:3]
    bench.gate.mode = "plan"
    assert bench.agent.run("write a.txt").text == "Done."
    assert users(bench) == ["hello", f"write a.txt\n\n{PLAN_ON}"]
    assert results(bench) == [AGREED, "Made a.txt: +1 -0 lines."]
    assert bench.gate.mode == "auto-edit"
    assert (bench.workspace.root / "a.txt").read_text() == "1"
    assert bench.toolbox.schemas == schemas  # what caches hold stays as it was
    assert bench.session.messages[:3] == beginning
    bench.agent.run("well done?")
    assert users(bench)[-1] == "well done?"  # the model knows that it may work


def test_the_model_is_told_once_of_each_change(open_bench):
    bench = open_bench(lambda messages: "Yes.", mode="plan")
    for mode in ("plan", "plan", "yolo", "default", "plan"):
        bench.gate.mode = mode
        bench.agent.run("go")
    assert users(bench) == [f"go\n\n{PLAN_ON}", "go", f"go\n\n{PLAN_OFF}", "go", f"go\n\n{PLAN_ON}"]


def test_a_session_that_goes_on_in_another_mode_is_told(open_bench, tmp_path):
    path = tmp_path / "s.jsonl"
    open_bench(["A plan."], mode="plan", path=path).agent.run("look")
    bench = open_bench(["Done."], mode="yolo", session=Session.load(path))
    bench.agent.run("do it")
    assert users(bench)[-1] == f"do it\n\n{PLAN_OFF}"


def test_only_commands_that_just_look_are_run(open_bench):
    commands = ["ls", "cat made | wc -l", "touch made", "ls > made", "echo $(touch made)", "git status; rm -rf x"]
    replies = [call("run_shell_command", command=command) for command in commands]
    bench = open_bench([*replies, "Seen."], mode="plan")
    bench.agent.run("look")
    refused = ["plan mode" in result for result in results(bench)]
    assert refused == [False, False, True, True, True, True]
    assert list(bench.workspace.root.iterdir()) == []


def test_what_a_rule_allows_is_not_run_in_plan_mode(open_bench, tmp_path):
    from codemill.agent.command_rules import CommandRules
    from codemill.agent.rules import ProjectRules

    bench = open_bench([call("run_shell_command", command="touch made"), "Seen."], mode="plan")
    bench.gate._rules = ProjectRules(CommandRules(allow=["touch:*"]))
    bench.agent.run("look")
    assert "plan mode" in results(bench)[0]


def test_plans_outside_of_plan_mode_are_no_reason_to_ask(open_bench):
    bench = open_bench([PLAN, "Well."], ["once"])
    bench.agent.run("go")
    assert results(bench) == ["Error: this is not plan mode: do the work"]


def test_a_plan_that_is_refused_leaves_plan_mode_on(open_bench):
    bench = open_bench([PLAN, WRITE, "Well."], ["no do it with tests"], mode="plan")
    bench.agent.run("go")
    assert results(bench)[0] == "Error: the user does not agree yet: do it with tests"
    assert "plan mode" in results(bench)[1]


def test_a_second_agent_is_told_to_look_only(open_bench):
    def reply(messages):
        if messages[0]["content"].endswith(SECOND_AGENT):
            assert messages[1]["content"] == "find it\n\n[Change nothing: only look, and say what you found.]"
            return WRITE if len(messages) == 2 else messages[-1]["content"]
        return messages[-1]["content"] if len(messages) > 3 else call("task", description="d", prompt="find it")

    bench = open_bench(reply, mode="plan")
    assert "plan mode" in bench.agent.run("go").text


def test_news_after_a_summary():
    summary = {"role": "user", "content": f"{BEGINNING}\n- go\n\n{PLAN_ON}\n\n## Summary"}
    assert knows_plan([summary])
    assert plan_news([summary], is_plan=False) == f"\n\n{PLAN_OFF}"
    assert without_news(f"go\n\n{PLAN_OFF}") == "go"
