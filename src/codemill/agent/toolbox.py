"""The tools of one agent: checks what the model asks for, has it approved, and runs it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Protocol

from codemill.agent.argument_check import check_arguments
from codemill.agent.events import CallBegun, CallOutput, Listener
from codemill.agent.output import cut_middle
from codemill.agent.secrets import MASK, has_mask, mask_secrets
from codemill.agent.stops import Stop
from codemill.agent.tool import Observation, Tool, ToolContext, ToolError, tool_schema
from codemill.chat.tool_types import ToolCall
from codemill.errors import CodemillError

MAX_CHARACTERS = 16_000  # of an observation: about 4,000 tokens


class Gate(Protocol):
    """Decides whether a call may be made."""

    def check(self, tool: Tool, call: ToolCall, context: ToolContext) -> None:
        """Return if it may. Raises ToolError for the model, with the reason, if not; Refused if the work shall end."""


class Toolbox:
    """The environment that an agent acts in. max_characters: of an observation, of which the middle is left out."""

    def __init__(
        self, tools: Iterable[Tool], context: ToolContext, gate: Gate, max_characters: int = MAX_CHARACTERS
    ) -> None:
        self.context = context
        self._tools = {tool.spec.name: tool for tool in tools}
        self._gate = gate
        self._max_characters = max_characters

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools in OpenAI's form, always in the same order: they are part of the prompt's beginning."""
        return [tool_schema(tool) for tool in self._tools.values()]

    @property
    def names(self) -> Sequence[str]:
        return list(self._tools)

    def add(self, tool: Tool) -> None:
        """One more, behind the others."""
        self._tools[tool.spec.name] = tool

    def find(self, name: str) -> Tool | None:
        """The tool of that name."""
        return self._tools.get(name)

    def run(self, call: ToolCall, listen: Listener, begin: Callable[[Tool], None] = lambda tool: None) -> Observation:
        """Make a call. Whatever goes wrong is an observation; only what ends the work is raised (Stop).

        begin: is told of a call that was approved, before it is made.
        """
        try:
            observation = self._run(call, listen, begin)
        except Stop:
            raise
        except (ToolError, CodemillError, OSError) as error:
            observation = Observation(f"Error: {error}", is_error=True)
        text = observation.text.encode("utf-8", "replace").decode()  # names of files may have halves of characters
        return replace(observation, text=cut_middle(mask_secrets(text), self._max_characters))

    def _run(self, call: ToolCall, listen: Listener, begin: Callable[[Tool], None]) -> Observation:
        tool = self._tools.get(call.name)
        if tool is None:
            close = get_close_matches(call.name, self._tools, n=2) or self.names
            raise ToolError(f"there is no tool {call.name!r}; use one of {', '.join(close)}")
        check_arguments(tool, call.arguments)
        if tool.spec.kind in ("edit", "run") and has_mask(call.arguments):
            raise ToolError(
                f"{MASK!r} stands for a secret that you were not shown: leave the lines with it as they are"
            )
        context = replace(self.context, print=lambda text: listen(CallOutput(call.id, text)))
        self._gate.check(tool, call, context)
        begin(tool)
        listen(CallBegun(call))
        return tool.run(call.arguments, context)
