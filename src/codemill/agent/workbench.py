"""An agent with all that it works with, put together from options."""

import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from codemill.agent.approval import ApprovalGate, Approver, Mode
from codemill.agent.budget import Budget
from codemill.agent.checkpoints import Checkpoints
from codemill.agent.compaction import Summarizer
from codemill.agent.configuration import Configuration, config_folder, state_folder
from codemill.agent.events import CallBegun, CallDone, Event, Listener, Notice
from codemill.agent.history import History
from codemill.agent.loop import Agent
from codemill.agent.model import Model
from codemill.agent.plan_mode import LOOK_ONLY, plan_news
from codemill.agent.prompt import MEMORY_FILES, Surroundings, read_memory, system_prompt
from codemill.agent.rules import ProjectRules
from codemill.agent.session import Session
from codemill.agent.snapshots import Snapshots
from codemill.agent.tool import Tool, ToolContext, ToolSource
from codemill.agent.toolbox import Toolbox
from codemill.agent.tools.edit import EditTool
from codemill.agent.tools.find import GlobTool, GrepSearchTool, ListDirectoryTool
from codemill.agent.tools.notes import SaveMemoryTool, TodoWriteTool
from codemill.agent.tools.plan import ExitPlanModeTool
from codemill.agent.tools.read_file import ReadFileTool, ReadManyFilesTool
from codemill.agent.tools.shell import ShellTool
from codemill.agent.tools.task import TaskTool
from codemill.agent.tools.write_file import WriteFileTool
from codemill.agent.workspace import Workspace

SECOND_AGENT = "\n\nYou are a second agent: do what the prompt says, and answer with what the first one needs to know."


@dataclass(frozen=True)
class AgentOptions:
    """What a user chooses. network: whether commands reach it. more_tools: besides those that each agent has.

    late_tools: such as those of MCP servers, which are still being started.
    """

    root: Path
    mode: Mode = "default"
    budget: Budget = field(default_factory=Budget)
    network: bool = False
    configuration: Configuration = field(default_factory=Configuration)
    more_tools: Sequence[Tool] = ()
    late_tools: ToolSource | None = None


class Workbench:
    """A context in which an agent has a shell; commands that still run at its end are ended with it.

    Raises IsolationError where the host cannot isolate: then no command could be run safely.
    """

    def __init__(
        self,
        options: AgentOptions,
        model: Model,
        session: Session,
        approver: Approver,
        listen: Listener = lambda event: None,
        snapshots_folder: Path | None = None,
    ) -> None:
        self._options = options
        self._model = model
        self._approver = approver
        self._listen = listen
        self._stack = ExitStack()
        self.session = session
        self.workspace = Workspace(options.root)
        self.cancel = threading.Event()
        self._folder = snapshots_folder
        self.rules = ProjectRules(options.configuration.command_rules)
        self.gate = ApprovalGate(options.mode, approver, self.rules)

    def __enter__(self) -> Self:
        from codemill.sandbox.workspace_shell import WorkspaceShell

        hidden = [state_folder(), config_folder()]
        shell = WorkspaceShell(self.workspace.root, network=self._options.network, hidden=hidden)
        self.shell = self._stack.enter_context(shell)
        folder = self._folder or Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self.snapshots = Snapshots(folder, self.workspace.root, state_folder())
        self._checkpoints = Checkpoints(self.session, self.snapshots, lambda text: self._listen(Notice(text)))
        self.history = History(self.session, self.snapshots, self.workspace)
        self._more_tools = list(self._options.more_tools)
        self.toolbox = self._toolbox([*self._tools(), *self._more_tools])
        self.agent = self._agent()
        self._begin_session()
        if self._options.late_tools is not None:
            self._options.late_tools.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for warning in self.shell.warnings:
            self._listen(Notice(warning))

    def use(self, model: Model) -> None:
        """Have another model answer from now on."""
        self._model = self.agent.model = model

    def _agent(self) -> Agent:
        return Agent(
            self._model,
            self.toolbox,
            self.session,
            budget=self._options.budget,
            compactor=Summarizer(),
            checkpointer=self._checkpoints,
            listen=self._listen,
            prepare=self._add_late_tools,
            news=lambda: plan_news(self.session.messages, self.gate.mode == "plan"),
        )

    def _begin_session(self) -> None:
        """The system prompt, unless the session has one: it must stay the same from turn to turn."""
        if not self.session.messages:
            self.session.add({"role": "system", "content": self._system_prompt()})

    def _system_prompt(self) -> str:
        root = self.workspace.root
        surroundings = Surroundings(root, self._options.network, (root / ".git").exists())
        memory = read_memory(root, config_folder() / MEMORY_FILES[0])
        return system_prompt(surroundings, memory)

    def _tools(self) -> list[Tool]:
        tools: list[Tool] = [*self._looking_tools(), EditTool(), WriteFileTool(), ShellTool(self.shell)]
        tools += [
            TodoWriteTool(self.session.keep_todos),
            SaveMemoryTool(config_folder() / MEMORY_FILES[0]),
            TaskTool(self._run_second),
        ]
        return [*tools, ExitPlanModeTool(self.gate, self._approver)]

    def _add_late_tools(self) -> None:
        """What has become ready since the last request. Behind the others: what caches hold of those stays."""
        source = self._options.late_tools
        for tool in source.gather(self._listen, self.cancel) if source is not None else ():
            if tool.spec.name not in self.toolbox.names:
                self.toolbox.add(tool)
                self._more_tools.append(tool)
                if getattr(tool, "is_trusted", False):
                    self.rules.trust(tool.spec.name)

    def _looking_tools(self) -> list[Tool]:
        return [ListDirectoryTool(), ReadFileTool(), ReadManyFilesTool(), GlobTool(), GrepSearchTool()]

    def _toolbox(self, tools: Sequence[Tool]) -> Toolbox:
        return Toolbox(tools, ToolContext(self.workspace, self.cancel), self.gate)

    def _run_second(self, prompt: str, kind: str, context: ToolContext) -> tuple[str, str]:
        """Have a second agent work, whose conversation is not kept."""
        tools = self._looking_tools()
        if kind != "explore":
            tools += [EditTool(), WriteFileTool(), ShellTool(self.shell), *self._more_tools]
        session = Session()
        session.add({"role": "system", "content": self.session.messages[0]["content"] + SECOND_AGENT})
        agent = Agent(
            self._model,
            self._toolbox(tools),
            session,
            budget=self.agent.spending.left(),
            compactor=Summarizer(),
            checkpointer=self._checkpoints,
            listen=_calls_only(self._listen),
            news=lambda: f"\n\n{LOOK_ONLY}" if self.gate.mode == "plan" else "",
        )
        try:
            outcome = agent.run(prompt)
        finally:
            self.agent.spending.add_work(agent.spending.steps, agent.spending.tokens)
        return outcome.status, outcome.text


def _calls_only(listen: Listener) -> Callable[[Event], None]:
    """What a second agent says is for the first one; the user sees what it does."""

    def tell(event: Event) -> None:
        if isinstance(event, CallBegun | CallDone | Notice):
            listen(event)

    return tell
