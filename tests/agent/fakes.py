"""Tools and surroundings for tests of the agent."""

from collections.abc import Iterable
from typing import Any

from codemill.agent.approval import ApprovalGate, ApprovalRequest, Decision, Mode, NobodyToAsk
from codemill.agent.tool import Arguments, Observation, Preview, ToolContext, ToolError, ToolSpec
from codemill.agent.toolbox import Toolbox


class EchoTool:
    """Gives back what it gets, or does what a function says."""

    def __init__(self, name: str = "echo", kind: Any = "read", action: Any = None) -> None:
        self.spec = ToolSpec(name, kind, "Gives the text back.", {"text": {"type": "string"}}, ("text",))
        self.calls: list[str] = []
        self._action = action

    def preview(self, arguments: Arguments, context: ToolContext) -> Preview:
        return Preview(arguments["text"])

    def run(self, arguments: Arguments, context: ToolContext) -> Observation:
        self.calls.append(arguments["text"])
        if self._action is not None:
            return self._action(arguments["text"], context)
        if arguments["text"] == "fail":
            raise ToolError("it failed")
        return Observation(f"echo: {arguments['text']}")


class Answers:
    """A user who answers as the list says, and whose questions are kept."""

    def __init__(self, answers: Iterable[str] = ()) -> None:
        self._answers = iter(answers)
        self.requests: list[ApprovalRequest] = []

    def ask(self, request: ApprovalRequest, cancel: Any) -> Decision:
        self.requests.append(request)
        answer, _, words = next(self._answers).partition(" ")
        return Decision(answer, words)  # type: ignore[arg-type]


def toolbox(*tools: Any, mode: Mode = "yolo", approver: Any = None, context: ToolContext | None = None) -> Toolbox:
    gate = ApprovalGate(mode, approver or NobodyToAsk())
    return Toolbox(tools, context or ToolContext(None), gate)  # type: ignore[arg-type]


def call(name: str, **arguments: str) -> str:
    """A call as Qwen3-Coder writes it."""
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"
