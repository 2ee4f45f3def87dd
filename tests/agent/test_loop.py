"""The loop, with a scripted model."""

import time
from contextlib import suppress

import pytest

from agent.fakes import EchoTool, call, toolbox
from codemill.agent.budget import Budget
from codemill.agent.events import CallDone, Notice, TextDelta
from codemill.agent.loop import LOST, Agent
from codemill.agent.model import Reply, Usage
from codemill.agent.scripted_model import ScriptedModel
from codemill.agent.session import Session
from codemill.agent.session_file import read_records
from codemill.agent.stops import ContextTooLong
from codemill.agent.tool import Observation
from codemill.chat.tool_types import ToolCall


def agent(script, *tools, session=None, **options) -> Agent:
    return Agent(ScriptedModel(script), toolbox(*tools), session or Session(), **options)


def roles(session: Session) -> list[str]:
    return [message["role"] for message in session.messages]


def test_a_task_from_the_request_to_the_answer():
    echo = EchoTool()
    works = agent([f"I look.\n{call('echo', text='a')}", "Done."], echo)
    outcome = works.run("do it")
    assert (outcome.status, outcome.text, outcome.steps) == ("finished", "Done.", 2)
    assert echo.calls == ["a"]
    assert roles(works.session) == ["user", "assistant", "tool", "assistant"]
    assert works.session.messages[2]["content"] == "echo: a"
    assert works.session.messages[1]["tool_calls"][0]["id"] == works.session.messages[2]["tool_call_id"]


def test_parallel_calls_are_made_in_order():
    echo = EchoTool()
    works = agent([f"{call('echo', text='a')}\n{call('echo', text='b')}", "Done."], echo)
    works.run("do it")
    assert echo.calls == ["a", "b"]
    assert roles(works.session) == ["user", "assistant", "tool", "tool", "assistant"]


def test_what_fails_is_told_to_the_model():
    works = agent([call("echo", text="fail"), call("nothing", x="1"), call("echo"), "Done."], EchoTool())
    works.run("do it")
    told = [message["content"] for message in works.session.messages if message["role"] == "tool"]
    assert told[0] == "Error: it failed"
    assert "no tool 'nothing'; use one of echo" in told[1]
    assert "the parameter text is missing" in told[2]
    assert "<function=echo>\n<parameter=text>" in told[2]


def test_a_call_that_cannot_be_read_is_explained():
    works = agent(["<tool_call>\nnonsense\n</tool_call>", "Done."], EchoTool())
    assert works.run("do it").status == "finished"
    told = works.session.messages[2]
    assert told["role"] == "user"
    assert "neither a function nor JSON" in told["content"]
    assert "<parameter=KEY>" in told["content"]


def test_a_model_that_never_writes_a_call_that_can_be_read():
    outcome = agent(lambda messages: "<tool_call>\nnonsense\n</tool_call>", EchoTool()).run("do it")
    assert outcome.status == "loop"


@pytest.mark.parametrize("text", ["same", "fail"])
def test_a_circle_is_told_once_and_then_ended(text):
    works = agent(lambda messages: call("echo", text=text), EchoTool())
    outcome = works.run("do it")
    results = [message["content"] for message in works.session.messages if message["role"] == "tool"]
    assert outcome.status == "loop"
    assert [("3 times" in result) for result in results] == [False, False, True, False]


def test_the_same_error_of_different_calls_is_a_circle_too():
    numbers = iter(range(100))
    failing = EchoTool(action=lambda text, context: Observation("Error: no", is_error=True))
    outcome = agent(lambda messages: call("echo", text=str(next(numbers))), failing).run("do it")
    assert (outcome.status, outcome.steps) == ("loop", 4)


def test_progress_is_no_circle():
    counter = iter(range(100))
    echo = EchoTool(action=lambda text, context: Observation(f"line {next(counter)}"))
    outcome = agent([call("echo", text="next")] * 8 + ["Done."], echo).run("do it")
    assert outcome.status == "finished"


@pytest.mark.parametrize(
    ("budget", "what"),
    [(Budget(steps=3), "3 steps"), (Budget(tokens=25), "30 tokens"), (Budget(seconds=1e-9), "second")],
)
def test_budgets(budget, what):
    numbers = iter(range(100))

    def reply(messages):
        return Reply(tool_calls=(ToolCall("echo", {"text": str(next(numbers))}),), usage=Usage(10, 5, 5))

    outcome = agent(reply, EchoTool(), budget=budget).run("do it")
    assert outcome.status == "budget"
    assert what in outcome.text


def test_the_user_stops_it_in_the_middle_of_a_call():
    session = Session()
    echo = EchoTool(action=lambda text, context: (context.cancel.set(), Observation("half"))[1])
    works = agent([f"{call('echo', text='a')}\n{call('echo', text='b')}", "Done."], echo, session=session)
    assert works.run("do it").status == "interrupted"
    assert echo.calls == ["a"]
    assert [message["content"].partition(":")[0] for message in session.messages[2:]] == ["half", "Error"]
    works.cancel.clear()
    outcome = Agent(ScriptedModel(["Well."]), works.toolbox, session).run("go on")
    assert outcome.text == "Well."


def test_events():
    events = []
    agent([f"Hm.\n{call('echo', text='a')}", "Done."], EchoTool(), listen=events.append).run("do it")
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["Hm.", "Done."]
    assert [event.observation.text for event in events if isinstance(event, CallDone)] == ["echo: a"]


class Shortener:
    def compact_if_needed(self, session, model, listen, cancel, tools=()):
        pass

    def compact(self, session, model, listen, cancel, tools=()):
        session.replace(session.messages[-1:], "too long")


def test_a_conversation_that_is_too_long_is_made_shorter():
    def reply(messages):
        if len(messages) > 3:
            raise ContextTooLong("too long")
        return "Done." if len(messages) == 1 else call("echo", text="a")

    events, session = [], Session()
    session.add_user("before")
    works = agent(reply, EchoTool(), session=session, compactor=Shortener(), listen=events.append)
    assert works.run("do it").text == "Done."
    assert any(isinstance(event, Notice) for event in events)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", ["read", "run"])
@pytest.mark.parametrize("moment", range(14))
def test_a_session_killed_at_any_line_goes_on(tmp_path, moment, kind):
    """The process dies when the given line of the file is being written; another one reads it and goes on."""
    path = tmp_path / "s.jsonl"
    script = [f"{call('echo', text='a')}\n{call('echo', text='b')}", call("echo", text="c"), "Done."]
    echo = EchoTool(kind=kind)
    session = Session.create(path)
    write, lines = session._write, iter(range(100))

    def dying_write(kind, **values):
        if next(lines) == moment:
            path.open("a").write('{"type": "message", "mess')  # half a line
            raise Killed
        write(kind, **values)

    session._write = dying_write
    with suppress(Killed):
        agent(script, echo, session=session).run("do it")
    loaded = Session.load(path)
    num_replies = roles(loaded).count("assistant")
    task = None if "user" in roles(loaded) else "do it"
    if roles(loaded)[-1:] != ["assistant"] or loaded.open_calls:
        outcome = agent(script[num_replies:], echo, session=loaded).run(task)
        assert outcome.text == "Done."
    assert Session.load(path).messages == loaded.messages
    results = [message["content"] for message in loaded.messages if message["role"] == "tool"]
    expected = ["echo: a", "echo: b", "echo: c"]
    assert [result if result != LOST else want for result, want in zip(results, expected, strict=True)] == expected
    assert results.count(LOST) <= (kind == "run")
    assert echo.calls == (["a", "b", "c"] if kind == "run" else echo.calls)
    assert [record["type"] for record in read_records(path)]


def test_the_time_is_looked_at_between_calls():
    echo = EchoTool(action=lambda text, context: (time.sleep(0.1), Observation(text))[1])
    reply = "\n".join(call("echo", text=str(number)) for number in range(20))
    session = Session()
    outcome = agent([reply], echo, session=session, budget=Budget(seconds=0.25)).run("do it")
    assert outcome.status == "budget"
    assert len(echo.calls) < 6
    assert session.open_calls == []


def test_calls_with_the_same_id_have_results_of_their_own():
    session = Session()
    calls = tuple(ToolCall("echo", {"text": text}, name) for text, name in (("a", "x"), ("b", "x"), ("c", "")))
    agent([Reply(tool_calls=calls), "Done."], EchoTool(), session=session).run("do it")
    ids = [made["id"] for made in session.messages[1]["tool_calls"]]
    assert len({*ids, ""}) == 4
    assert [message["tool_call_id"] for message in session.messages[2:5]] == ids
