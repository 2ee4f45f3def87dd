"""`exit_plan_mode`: shows the user the plan, and begins with it if the user agrees."""

from codemill.agent.approval import ApprovalGate, ApprovalRequest, Approver
from codemill.agent.plan_mode import AGREED
from codemill.agent.stops import Refused
from codemill.agent.tool import Arguments, Observation, Preview, ToolContext, ToolError, ToolSpec
from codemill.chat.tool_types import ToolCall


class ExitPlanModeTool:
    """Ends plan mode, once the user agrees. gate: whose mode changes."""

    spec = ToolSpec(
        "exit_plan_mode",
        "think",
        "Ends plan mode with a plan.",
        {"plan": {"type": "string"}},
        required=("plan",),
    )

    def __init__(self, gate: ApprovalGate, approver: Approver) -> None:
        self._gate = gate
        self._approver = approver

    def preview(self, arguments: Arguments, context: ToolContext) -> Preview:
        return Preview("the plan")

    def run(self, arguments: Arguments, context: ToolContext) -> Observation:
        if self._gate.mode != "plan":
            raise ToolError("this is not plan mode: do the work")
        call = ToolCall(self.spec.name, dict(arguments))
        request = ApprovalRequest(self, call, Preview(arguments["plan"]), "the plan", "edits without further questions")
        decision = self._approver.ask(request, context.cancel)
        if decision.answer == "stop":
            raise Refused("stopped: the user does not want the plan")
        if decision.answer == "no":
            raise ToolError(f"the user does not agree yet{': ' + decision.words if decision.words else ''}")
        self._gate.mode = "auto-edit" if decision.answer == "always" else "default"
        return Observation(AGREED)
