"""`task`: a second agent with a conversation of its own, which does one thing and says what came of it."""

from collections.abc import Callable

from codemill.agent.stops import Interrupted
from codemill.agent.tool import Arguments, Observation, Preview, ToolContext, ToolError, ToolSpec

TYPES = ("general-purpose", "explore")

# (what it shall do, what kind of agent, the context of the call) -> its status and its answer.
RunAgent = Callable[[str, str, ToolContext], tuple[str, str]]


class TaskTool:
    """Hands a part of the work to another agent, whose steps do not fill this one's context."""

    spec = ToolSpec(
        "task",
        "think",  # what the other agent does is approved by itself
        "A second agent (general-purpose; explore only looks) does a part; it sees only the prompt.",
        {
            "description": {"type": "string"},
            "prompt": {"type": "string"},
            "subagent_type": {"type": "string"},
        },
        required=("description", "prompt"),
    )

    def __init__(self, run_agent: RunAgent) -> None:
        self._run_agent = run_agent

    def preview(self, arguments: Arguments, context: ToolContext) -> Preview:
        return Preview(arguments["description"])

    def run(self, arguments: Arguments, context: ToolContext) -> Observation:
        kind = arguments.get("subagent_type") or TYPES[0]
        if kind not in TYPES:
            raise ToolError(f"subagent_type must be one of {', '.join(TYPES)}")
        status, answer = self._run_agent(arguments["prompt"], kind, context)
        if status == "interrupted":
            raise Interrupted("stopped")
        if status != "finished":
            raise ToolError(f"the second agent did not finish: {answer}")
        return Observation(answer)
