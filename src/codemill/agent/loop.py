"""The agent: asks the model, does what it asks for, and tells it what came of it, until it asks for nothing more."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from codemill.agent.budget import Budget, Spending
from codemill.agent.events import CallDone, Listener, Notice, ReplyDone
from codemill.agent.model import Message, Model, Reply
from codemill.agent.repetition import RepetitionGuard
from codemill.agent.session import Session, call_object
from codemill.agent.stops import ContextTooLong, Finished, Interrupted, LoopFound, Status, Stop
from codemill.agent.tool import Observation, Tool, ToolContext
from codemill.agent.toolbox import Toolbox
from codemill.chat.tool_types import ToolCall, new_call_id
from codemill.errors import CodemillError

MAX_FAULTY_REPLIES = 3
LOST = "Error: the session ended while this ran. It may have had its effect, or part of it: look before you repeat it."
STOPPED = "Error: the user stopped this before it was done."
NOT_RUN = "Error: this was not run, because the user stopped the work before it."
FORMAT = (
    "Your last message had a tool call that cannot be read: {problems}. Write calls exactly like this, and nothing "
    "after them:\n<tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call>"
)
CUT = "Your last message was cut off, since it was too long. Go on in smaller steps."


class Compactor(Protocol):
    """Makes a conversation shorter."""

    def compact_if_needed(
        self, session: Session, model: Model, listen: Listener, cancel: threading.Event, tools: Sequence[Message] = ()
    ) -> None:
        """Replace the session's messages by fewer, if they come near the model's context. tools: that the model has."""

    def compact(
        self, session: Session, model: Model, listen: Listener, cancel: threading.Event, tools: Sequence[Message] = ()
    ) -> None:
        """Replace them now. Raises ContextTooLong if nothing can be left out."""


class Checkpointer(Protocol):
    """Keeps the files as they are, to go back to."""

    def before(self, tool: Tool, call: ToolCall, context: ToolContext) -> None:
        """A call was approved, and is about to be made. Raises CodemillError if nothing can be kept: it is not made."""

    def end_turn(self) -> None:
        """The agent has ended its work, and others may change files now."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. text: the model's answer, or a line that says why there is none."""

    status: Status
    text: str
    steps: int
    tokens: int
    seconds: float


class Agent:
    """Works on one task after the other in a session. `cancel`, once set, ends the run at the next possible moment.

    budget: of each run; it may be changed between them. prepare: is called when one begins. news: what the model is
    told besides a task.
    """

    def __init__(
        self,
        model: Model,
        toolbox: Toolbox,
        session: Session,
        *,
        budget: Budget | None = None,
        compactor: Compactor | None = None,
        checkpointer: Checkpointer | None = None,
        listen: Listener = lambda event: None,
        prepare: Callable[[], None] = lambda: None,
        news: Callable[[], str] = lambda: "",
    ) -> None:
        self.model = model
        self.toolbox = toolbox
        self.session = session
        self.listen = listen
        self.cancel = toolbox.context.cancel
        self.budget = budget or Budget()
        self._compactor = compactor
        self._checkpointer = checkpointer
        self._prepare = prepare
        self._news = news
        self._num_faulty = 0
        self.spending = Spending(self.budget)  # of the run that is under way

    def run(self, task: str | None) -> Outcome:
        """Work on a task; None goes on where the session was left. Raises CodemillError if the model fails."""
        self.spending, guard = Spending(self.budget), RepetitionGuard()
        spending = self.spending
        self._remember_files()
        try:
            self._prepare()
            self._answer_open_calls(guard)
            if task is not None:
                self.session.add_user(task + self._news())
            elif self.session.is_answered:
                raise Finished(self.session.messages[-1]["content"])
            while True:
                self._step(spending, guard)
        except Stop as stop:
            self._close_open_calls(STOPPED if isinstance(stop, Interrupted) else NOT_RUN)
            self._end_turn()
            return Outcome(stop.status, stop.message, spending.steps, spending.tokens, spending.seconds)

    def compact(self) -> None:
        """Make the conversation shorter now. Raises ContextTooLong if nothing can be left out."""
        if self._compactor is not None:
            self._compactor.compact(self.session, self.model, self.listen, self.cancel, self.toolbox.schemas)

    def _step(self, spending: Spending, guard: RepetitionGuard) -> None:
        """One reply of the model, and all that it asks for."""
        self._check_cancel()
        spending.check()
        reply = _with_distinct_ids(self._ask())
        spending.add(reply.usage)
        self.session.add(_assistant_message(reply))
        self.session.note_usage(reply.usage)
        is_faulty = bool(reply.problems) or reply.is_cut
        if not reply.tool_calls and not is_faulty:
            raise Finished(reply.content)
        for call in reply.tool_calls:
            spending.check_seconds()
            self._act(call, guard)
        self._num_faulty = self._num_faulty + 1 if is_faulty else 0
        if is_faulty:
            self._answer_faulty(reply)

    def _ask(self) -> Reply:
        """The model's next reply, from a conversation that was made shorter if it has to be."""
        if self._compactor is not None:
            schemas = self.toolbox.schemas
            self._compactor.compact_if_needed(self.session, self.model, self.listen, self.cancel, schemas)
        try:
            return self._reply()
        except ContextTooLong:
            if self._compactor is None:
                raise
            self.listen(Notice("the conversation is too long for the model: it is being summarised"))
            self.compact()
            return self._reply()

    def _reply(self) -> Reply:
        begin = time.monotonic()
        reply = self.model.reply(self.session.messages, self.toolbox.schemas, self.listen, self.cancel)
        self.listen(ReplyDone(reply.usage, time.monotonic() - begin))
        return reply

    def _act(self, call: ToolCall, guard: RepetitionGuard) -> None:
        """Make a call, and tell the model what came of it."""
        self._check_cancel()
        observation = self.toolbox.run(call, self.listen, lambda tool: self._begin(tool, call))
        self.listen(CallDone(call, observation))
        try:
            advice = guard.note(call, observation)
        except Stop:
            self._add_result(call, observation.text)
            raise
        self._add_result(call, observation.text + advice)

    def _begin(self, tool: Tool, call: ToolCall) -> None:
        """What only looks can be done again, if the process dies before its result is kept."""
        if self._checkpointer is not None:
            self._checkpointer.before(tool, call, self.toolbox.context)
        if tool.spec.kind != "read":
            self.session.begin_call(call)

    def _add_result(self, call: ToolCall, text: str) -> None:
        workspace = self.toolbox.context.workspace
        self.session.add_tool_result(call, text, workspace.known if workspace is not None else None)

    def _remember_files(self) -> None:
        """The files that the agent knew when the session was left."""
        if self.toolbox.context.workspace is not None:
            self.toolbox.context.workspace.remember(self.session.known)

    def _end_turn(self) -> None:
        """What the user changes from now on is not the agent's work."""
        try:
            if self._checkpointer is not None:
                self._checkpointer.end_turn()
        except CodemillError as error:
            self.listen(Notice(str(error)))

    def _answer_faulty(self, reply: Reply) -> None:
        """Say what was wrong with calls that cannot be read; those that could be were made all the same."""
        problems = "; ".join(reply.problems)
        self.listen(Notice(f"the model wrote a call that cannot be read: {problems or 'it was cut off'}"))
        if self._num_faulty > MAX_FAULTY_REPLIES:
            raise LoopFound("stopped: the model cannot write a call that can be read")
        self.session.add_correction(FORMAT.format(problems=problems) if problems else CUT)

    def _answer_open_calls(self, guard: RepetitionGuard) -> None:
        """What the last reply asked for, and a session that was left did not get to."""
        for call in self.session.open_calls:
            if self.session.has_begun(call):
                self.listen(CallDone(call, Observation(LOST, is_error=True)))
                self.session.add_tool_result(call, LOST)
            else:
                self._act(call, guard)

    def _close_open_calls(self, text: str) -> None:
        """A conversation in which a call has no result is one that no model takes."""
        for call in self.session.open_calls:
            self.session.add_tool_result(call, text if self.session.has_begun(call) else NOT_RUN)

    def _check_cancel(self) -> None:
        if self.cancel.is_set():
            raise Interrupted("stopped")


def _with_distinct_ids(reply: Reply) -> Reply:
    """A call that has the id of another one, or none, gets one of its own: its result is found by that."""
    seen: set[str] = {""}
    calls = []
    for call in reply.tool_calls:
        calls.append(replace(call, id=new_call_id()) if call.id in seen else call)
        seen.add(call.id)
    return replace(reply, tool_calls=tuple(calls))


def _assistant_message(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.content}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [call_object(call) for call in reply.tool_calls]
    return message
