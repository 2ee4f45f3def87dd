"""Which calls are made at once, which the user is asked about, and which are refused."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from codemill.agent.stops import Refused
from codemill.agent.tool import Preview, Tool, ToolContext, ToolError
from codemill.chat.tool_types import ToolCall
from codemill.errors import UsageError

# plan: looks only. default: asks before each change and command. auto-edit: edits without asking. yolo: never asks.
Mode = Literal["plan", "default", "auto-edit", "yolo"]
MODES: tuple[Mode, ...] = get_args(Mode)
Action = Literal["allow", "ask", "deny"]

IN_PLAN = (
    "this is plan mode, in which nothing is changed, and only commands are run that just look: look, think, and "
    "present the plan with exit_plan_mode"
)


@dataclass(frozen=True)
class Verdict:
    """What a rule says of a call, and why, in one line. is_secret: not even an error may show what it is about.

    only_looks: the call changes nothing, though its tool can.
    """

    action: Action
    reason: str = ""
    is_secret: bool = False
    only_looks: bool = False


@dataclass(frozen=True)
class Decision:
    """What the user says. answer: once; always, for all calls that `remember` covers; no, with words for the model; or
    stop, which ends the work."""

    answer: Literal["once", "always", "no", "stop"]
    words: str = ""


@dataclass(frozen=True)
class ApprovalRequest:
    """What the user is asked. reason: why. remember: what "always" would allow, in words; empty if it is no choice."""

    tool: Tool
    call: ToolCall
    preview: Preview
    reason: str = ""
    remember: str = ""


class Approver(Protocol):
    """Asks the user."""

    def ask(self, request: ApprovalRequest, cancel: threading.Event) -> Decision:
        """Wait for the answer. Raises Interrupted once `cancel` is set."""


class NobodyToAsk:
    """Where there is no user to ask: what would need one is refused."""

    def ask(self, request: ApprovalRequest, cancel: threading.Event) -> Decision:
        subject = request.preview.subject
        return Decision("no", f"nobody is there to approve {request.call.name} of {subject}: do without it")


class Rules(Protocol):
    """What is allowed, asked and denied besides what the mode says."""

    def judge(self, tool: Tool, call: ToolCall, context: ToolContext) -> Verdict | None:
        """None where they say nothing."""

    def remember(self, tool: Tool, call: ToolCall) -> tuple[str, Callable[[], None]] | None:
        """What "always" would allow, in words, and how to allow it; None where that is no choice."""


class NoRules:
    """Nothing but the mode."""

    def judge(self, tool: Tool, call: ToolCall, context: ToolContext) -> Verdict | None:
        return None

    def remember(self, tool: Tool, call: ToolCall) -> tuple[str, Callable[[], None]] | None:
        return None


class ApprovalGate:
    """Stands before each call. `mode` may be changed between calls."""

    def __init__(self, mode: Mode, approver: Approver, rules: Rules | None = None) -> None:
        """Raises UsageError for a mode that there is not."""
        if mode not in MODES:
            raise UsageError(f"approval mode {mode!r}: choose {', '.join(MODES)}")
        self.mode: Mode = mode
        self._approver = approver
        self._rules = rules or NoRules()

    def check(self, tool: Tool, call: ToolCall, context: ToolContext) -> None:
        """Return if the call may be made. Raises ToolError, with the reason for the model, or Refused."""
        verdict = self._judge(tool, call, context)
        if verdict.action == "deny":
            raise ToolError(f"not allowed: {verdict.reason}")
        preview = _preview(tool, call, context, verdict)
        if verdict.action == "ask":
            self._ask(tool, call, preview, verdict.reason, context)

    def _judge(self, tool: Tool, call: ToolCall, context: ToolContext) -> Verdict:
        """Rules that deny or ask come before the mode, and rules that allow only lift its questions."""
        by_rule = self._rules.judge(tool, call, context)
        if by_rule is not None and by_rule.action == "deny":
            return by_rule
        only_looks = tool.spec.kind in ("read", "think") or (by_rule is not None and by_rule.only_looks)
        if self.mode == "plan" and not only_looks:
            return Verdict("deny", IN_PLAN)
        if self.mode == "yolo":
            return Verdict("allow")
        if by_rule is not None:
            return by_rule
        if tool.spec.kind in ("read", "think") or (self.mode == "auto-edit" and tool.spec.kind == "edit"):
            return Verdict("allow")
        return Verdict("ask")

    def _ask(self, tool: Tool, call: ToolCall, preview: Preview, reason: str, context: ToolContext) -> None:
        remembered = self._rules.remember(tool, call)
        words, allow = remembered if remembered is not None else ("", None)
        decision = self._approver.ask(ApprovalRequest(tool, call, preview, reason, words), context.cancel)
        if decision.answer == "stop":
            raise Refused("stopped: the user refused what the model asked for")
        if decision.answer == "no":
            raise ToolError(f"the user refused this{': ' + decision.words if decision.words else ''}")
        if decision.answer == "always" and allow is not None:
            allow()


def _preview(tool: Tool, call: ToolCall, context: ToolContext, verdict: Verdict) -> Preview:
    """What the call would do. One that cannot work is told at once, but for what the model may not see unasked."""
    try:
        return tool.preview(call.arguments, context)
    except ToolError:
        if not verdict.is_secret:
            raise
        return Preview(verdict.reason)
