"""`!command`: runs in the sandbox, is shown, and becomes part of the conversation."""

from codemill.agent.events import CallBegun, CallDone, CallOutput
from codemill.agent.output import cut_middle
from codemill.agent.stops import Interrupted
from codemill.agent.terminal.work import Work
from codemill.agent.tool import Observation, ToolContext
from codemill.agent.toolbox import MAX_CHARACTERS
from codemill.agent.tools.shell import ShellTool
from codemill.chat.tool_types import ToolCall

REPORT = "I ran this command myself:\n{command}\n\nIt printed:\n{output}"


def run_command(work: Work, command: str) -> None:
    """Run it as the user's own: nobody is asked. Raises Interrupted."""
    tool = work.bench.toolbox.find(ShellTool.spec.name) or ShellTool(work.bench.shell)
    call = ToolCall(tool.spec.name, {"command": command})
    context = ToolContext(work.bench.workspace, work.bench.cancel, lambda text: work.listen(CallOutput(call.id, text)))
    work.listen(CallBegun(call))
    try:
        done = tool.run(call.arguments, context)
    except Interrupted:
        done = Observation("[stopped by the user]", is_error=True)
    work.listen(CallDone(call, done))
    output = cut_middle(done.text, MAX_CHARACTERS)
    work.session.add_user(REPORT.format(command=command, output=output))
    work.measure()
