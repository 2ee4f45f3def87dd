"""Conversations that are made shorter, with a scripted model."""

import threading

import pytest

from agent.fakes import EchoTool, call, toolbox
from codemill.agent.compaction import (
    BEGINNING,
    INSTRUCTION,
    MAX_REQUEST,
    Summarizer,
    conversation_tokens,
    estimate,
)
from codemill.agent.events import Notice
from codemill.agent.loop import Agent
from codemill.agent.model import Reply, Usage
from codemill.agent.scripted_model import ScriptedModel
from codemill.agent.session import Session
from codemill.agent.stops import ContextTooLong, Interrupted
from codemill.agent.tool import Observation
from codemill.chat.tool_types import ToolCall

SYSTEM = {"role": "system", "content": "You are Codemill."}
CONTEXT = 4000


def asks_for_summary(messages) -> bool:
    return messages[-1]["content"] == INSTRUCTION


def is_well_formed(messages) -> bool:
    """Each result answers a call of the reply before it, and each call has its result."""
    open_calls: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_calls:
                return False
            open_calls.remove(message["tool_call_id"])
        elif open_calls:
            return False
        open_calls += [made["id"] for made in message.get("tool_calls") or ()]
    return not open_calls


def conversation(
    num_calls: int = 6, size: int = 900, requests: tuple[str, ...] = ("Do it. Never touch lib/.",)
) -> Session:
    session = Session()
    session.add(SYSTEM)
    for request in requests:
        session.add_user(request)
        for number in range(num_calls):
            made = ToolCall("echo", {"text": f"{request} {number}"})
            function = {"name": "echo", "arguments": made.arguments_json}
            session.add({"role": "assistant", "content": "", "tool_calls": [{"id": made.id, "function": function}]})
            session.add_tool_result(made, f"{number}" * size)
    return session


def compact(session: Session, script, context: int = CONTEXT, **options) -> ScriptedModel:
    model = ScriptedModel(script, context)
    Summarizer().compact(session, model, lambda event: None, threading.Event(), **options)
    return model


def test_what_must_not_be_lost_survives_two_compactions():
    session = conversation(requests=("Port it to Rust. Never touch lib/.", "Also keep Python 3.11."))
    todos = [{"content": "write the tests", "status": "pending"}, {"content": "look around", "status": "completed"}]
    session.keep_todos(todos)
    compact(session, ["Decided: use pyo3."])
    for number in range(8):
        session.add({"role": "assistant", "content": f"{number}" * 700})
    session.add_user("And no unsafe code.")
    session.add({"role": "assistant", "content": "x" * 3000})

    def second(messages):
        assert "Decided: use pyo3." in messages[1]["content"]
        assert "Port it to Rust. Never touch lib/." in messages[1]["content"]
        return "Decided: use pyo3; done so far: nothing."

    compact(session, second)
    text = session.messages[1]["content"]
    assert session.messages[0] == SYSTEM
    for kept in (
        "Port it to Rust. Never touch lib/.",
        "Also keep Python 3.11.",
        "And no unsafe code.",
        "use pyo3; done",
    ):
        assert text.count(kept) == 1
    assert "[ ] write the tests" in text
    assert "look around" not in text
    assert sum(message["content"].startswith(BEGINNING) for message in session.messages) == 1
    assert session.requests == ["Port it to Rust. Never touch lib/.", "Also keep Python 3.11.", "And no unsafe code."]


def test_all_of_it_is_there_when_the_session_is_read_again(tmp_path):
    session = Session.create(tmp_path / "s.jsonl")
    for message in conversation().messages:
        session.add(message)
    session.keep_todos([{"content": "write the tests", "status": "pending"}])
    compact(session, ["So far."])
    loaded = Session.load(tmp_path / "s.jsonl")
    assert (loaded.messages, loaded.requests, loaded.todos) == (session.messages, session.requests, session.todos)
    compact(loaded, ["So far, again."], 400)
    assert "Never touch lib/." in loaded.messages[1]["content"]
    assert "write the tests" in loaded.messages[1]["content"]


@pytest.mark.parametrize("size", [10, 100, 350, 800, 1500, 2600, 9000])
@pytest.mark.parametrize("num_calls", [1, 2, 3, 7])
def test_the_rest_is_a_conversation(size, num_calls):
    session = conversation(num_calls, size)
    before = estimate(session.messages)
    compact(session, ["So far."])
    assert is_well_formed(session.messages)
    assert session.messages[0] == SYSTEM
    assert session.messages[1]["role"] == "user"
    assert session.messages[2:] == [] or session.messages[2]["role"] != "tool"
    assert estimate(session.messages) < max(before, 200)
    assert estimate(session.messages[2:]) <= CONTEXT * 0.2


def test_calls_that_were_made_together_stay_together():
    session = Session()
    session.add_user("Do it.")
    session.add({"role": "assistant", "content": "x" * 9000})
    calls = [ToolCall("echo", {"text": str(number)}) for number in range(3)]
    made = [{"id": call.id, "function": {"name": "echo", "arguments": "{}"}} for call in calls]
    session.add({"role": "assistant", "content": "y" * 1000, "tool_calls": made})
    for one in calls:
        session.add_tool_result(one, "z" * 600)
    compact(session, ["So far."])
    assert is_well_formed(session.messages)


def test_nothing_happens_below_the_threshold():
    session = conversation(2, 100)
    model, events = ScriptedModel([], CONTEXT), []
    before = list(session.messages)
    Summarizer().compact_if_needed(session, model, events.append, threading.Event())
    assert (session.messages, model.seen, events) == (before, [], [])


def test_the_threshold_counts_what_the_model_counted_and_what_came_after():
    session = conversation(2, 100)
    session.note_usage(Usage(prompt_tokens=2000, completion_tokens=1000))
    assert conversation_tokens(session) == 3000 + estimate(session.messages[-1:])
    session.add_user("x" * 900)
    assert conversation_tokens(session) == 3000 + estimate(session.messages[-2:])
    session.replace(session.messages[:3], "summary")
    assert conversation_tokens(session) == estimate(session.messages)


def test_tools_count_where_the_model_does_not():
    session, tools = conversation(1, 100), [{"function": {"description": "x" * 3000}}]
    assert conversation_tokens(session, tools) > conversation_tokens(session) + 990


def test_the_question_begins_as_the_conversation_did():
    """So that the model computes only what is new."""
    session, tools = conversation(3, 300), [{"type": "function", "function": {"name": "echo"}}]
    before = list(session.messages)
    given = []

    class Model(ScriptedModel):
        def reply(self, messages, tools, listen, cancel):
            given.append((messages, tools))
            return Reply("So far.")

    Summarizer().compact(session, Model([], CONTEXT), lambda event: None, threading.Event(), tools)
    assert given == [([*before, {"role": "user", "content": INSTRUCTION}], tools)]


def test_a_conversation_that_is_too_long_to_be_summarised_whole():
    def reply(messages):
        assert asks_for_summary(messages)
        if estimate(messages) > 3000:
            raise ContextTooLong("too long")
        return "So far."

    session = conversation(12, 5000)
    model = compact(session, reply)
    assert "So far." in session.messages[1]["content"]
    assert all(estimate(messages) <= CONTEXT for messages in model.seen)
    assert "Never touch lib/." in str(model.seen[-1])


def test_a_model_that_never_can():
    def reply(messages):
        raise ContextTooLong("too long")

    session = conversation()
    session.messages[1:1] = [{"role": "user", "content": f"{BEGINNING}\n\n## Summary of the work\nDecided: pyo3."}]
    compact(session, reply)
    text = session.messages[1]["content"]
    assert "Decided: pyo3." in text
    assert 'echo {"text": "Do it. Never touch lib/. 5"}' in text


@pytest.mark.parametrize(
    "answer", ["", "  \n", f"I look first.\n{call('echo', text='a')}", "<tool_call>\nnonsense\n</tool_call>"]
)
def test_a_model_that_does_not_summarise_is_asked_once_more(answer):
    session = conversation(2, 300)
    model = compact(session, [answer, "So far."], tools=[{"type": "function", "function": {"name": "echo"}}])
    assert len(model.seen) == 2
    assert "So far." in session.messages[1]["content"]
    assert "I look first" not in session.messages[1]["content"]


def test_an_endless_summary_is_cut():
    session = conversation()
    compact(session, ["word " * 10_000])
    assert estimate(session.messages) < CONTEXT * 0.6


def test_requests_that_are_too_long_are_cut_in_the_middle():
    session = conversation(1, 10, tuple(f"Begin {number}. {'x' * 3000} End {number}." for number in range(8)))
    compact(session, ["So far."])
    text = session.messages[1]["content"]
    assert all(f"Begin {number}." in text and f"End {number}." in text for number in range(8))
    assert len(text) < CONTEXT * 3 * 0.4


def test_corrections_are_no_requests():
    session = conversation(1, 10)
    session.add_correction("Your last message had a call that cannot be read.")
    session.add({"role": "assistant", "content": "x" * 4000})
    compact(session, ["So far."])
    assert "cannot be read" not in session.messages[1]["content"]


def test_a_short_conversation_can_be_summarised_when_the_user_asks_for_it():
    session = conversation(1, 10)
    compact(session, ["So far."])
    assert [message["role"] for message in session.messages] == ["system", "user"]


def test_there_may_be_nothing_to_leave_out():
    session = Session()
    session.add(SYSTEM)
    session.add_user("x" * 50_000)
    with pytest.raises(ContextTooLong, match="as short as it can be"):
        compact(session, [])
    assert len(session.messages[1]["content"]) == 50_000


def test_the_user_can_stop_it():
    session, cancel = conversation(), threading.Event()
    before = list(session.messages)
    cancel.set()
    with pytest.raises(Interrupted):
        Summarizer().compact(session, ScriptedModel(["So far."], CONTEXT), lambda event: None, cancel)
    assert session.messages == before


def work(context: int, num_steps: int, result: str, limit: float = 1.0) -> tuple[Agent, list, list]:
    """An agent whose model counts tokens and refuses what is too long."""
    steps, events, summaries = iter(range(10_000)), [], []

    def reply(messages):
        size = estimate(messages)
        if size > context * limit:
            raise ContextTooLong("the conversation does not fit the model's context")
        if asks_for_summary(messages):
            summaries.append(size)
            return Reply("So far.", usage=Usage(size, 10))
        number = next(steps)
        calls = (ToolCall("echo", {"text": str(number)}),) if number < num_steps else ()
        return Reply("" if calls else "Done.", calls, usage=Usage(size, 20))

    session = Session()
    session.add(SYSTEM)
    echo = EchoTool(action=lambda text, context: Observation(f"{text} {result}"))
    model = ScriptedModel(reply, context)
    agent = Agent(model, toolbox(echo), session, compactor=Summarizer(), listen=events.append)
    return agent, events, summaries


def test_an_agent_that_works_for_long():
    agent, events, summaries = work(CONTEXT, 60, "y" * 1500)
    assert agent.run("Do it. Never touch lib/.").status == "finished"
    assert 4 < len(summaries) < 20
    assert len([event for event in events if isinstance(event, Notice)]) == len(summaries)
    assert all(any("Never touch lib/." in str(message["content"]) for message in seen) for seen in agent.model.seen)
    assert all(is_well_formed(seen) for seen in agent.model.seen)
    assert all(seen[0] == SYSTEM for seen in agent.model.seen)


def test_a_server_whose_context_is_shorter_than_it_says():
    agent, _, summaries = work(CONTEXT, 30, "y" * 1500, limit=0.6)
    assert agent.run("Do it.").status == "finished"
    assert summaries


def test_a_tiny_context():
    agent, _, summaries = work(2048, 30, "y" * 600)
    assert agent.run("Do it.").status == "finished"
    assert 0 < len(summaries) < 30


def test_a_context_that_is_too_small_ends_the_work_instead_of_summarising_for_ever():
    agent, _, summaries = work(CONTEXT, 30, "y" * 300, limit=0.01)
    agent.session.add({"role": "assistant", "content": "x" * 9000})
    with pytest.raises(ContextTooLong):
        agent.run("Do it.")
    assert len(agent.model.seen) < 6
    assert summaries == []


def test_the_user_summarises_by_hand():
    agent, _, _ = work(CONTEXT, 2, "y" * 100)
    agent.run("Do it.")
    agent.compact()
    assert agent.session.messages[1]["content"].startswith(BEGINNING)
    assert agent.run("More.").text == "Done."


def test_a_request_is_kept_whole_up_to_a_limit():
    text = "x" * (MAX_REQUEST - 10)
    session = conversation(requests=(text,))
    compact(session, ["So far."], 32_000)
    assert text in session.messages[1]["content"]
