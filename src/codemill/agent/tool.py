"""What a tool is, and what it gives."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from codemill.agent.events import Listener
    from codemill.agent.workspace import Workspace

# read: looks only. edit: changes files of the workspace. run: commands. fetch: reaches the network. think: changes
# nothing but the agent's own state.
ToolKind = Literal["read", "edit", "run", "fetch", "think"]
Arguments = Mapping[str, Any]


class ToolError(Exception):
    """A call that did not work. The message is for the model: what is wrong, and what to do instead."""


@dataclass(frozen=True)
class Observation:
    """What a call gave. text: for the model. shown: for the user, where that is another text, such as a diff.

    has_waited: time has passed for something that goes on meanwhile, so that the same call may give something else.
    """

    text: str
    is_error: bool = False
    shown: str | None = None
    has_waited: bool = False


@dataclass(frozen=True)
class Preview:
    """What a call is about to do, for the user to approve. subject: a path or a command; diff: of files."""

    subject: str
    diff: str = ""


@dataclass(frozen=True)
class ToolContext:
    """What a running tool has besides its arguments. print: shows output while it comes."""

    workspace: "Workspace"
    cancel: threading.Event = field(default_factory=threading.Event)
    print: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class ToolSpec:
    """What a model is told of a tool. properties: JSON schemas of its arguments by name."""

    name: str
    kind: ToolKind
    description: str
    properties: Mapping[str, Any]
    required: tuple[str, ...] = ()

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of all arguments."""
        return {"type": "object", "properties": dict(self.properties), "required": list(self.required)}


class Tool(Protocol):
    """A tool; its arguments were checked against `spec` when it is called."""

    spec: ToolSpec

    def preview(self, arguments: Arguments, context: ToolContext) -> Preview:
        """What the call would do; nothing is changed. Raises ToolError for a call that cannot work."""

    def run(self, arguments: Arguments, context: ToolContext) -> Observation:
        """Do it. Raises ToolError; Interrupted once `context.cancel` is set."""


class ToolSource(Protocol):
    """Tools that take a while to be there, such as those of other programs."""

    def start(self) -> None:
        """Begin to make them ready, and wait for nothing. More than once it does nothing more."""

    def gather(self, listen: "Listener", cancel: threading.Event) -> Sequence[Tool]:
        """Those that are ready now, after a short wait. What is missing is told. Raises Interrupted."""


def tool_schema(tool: Tool) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    spec = tool.spec
    function = {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
    return {"type": "function", "function": function}
