"""An agent that is killed while it works, and goes on when it is started again: a program for test_session_kill.py.

killed_agent.py STATE WORKSPACE: goes on with the latest session there, or begins one. The model is a function of the
conversation: it makes the calls of PLAN one after the other, and where it is told that a call was lost, it looks
whether that had its effect, and makes it again if not.
"""

import sys
import time
from pathlib import Path

from codemill.agent.approval import ApprovalGate, NobodyToAsk
from codemill.agent.checkpoints import Checkpoints
from codemill.agent.compaction import Summarizer
from codemill.agent.loop import LOST, Agent
from codemill.agent.model import Reply, Usage
from codemill.agent.scripted_model import ScriptedModel
from codemill.agent.session_store import SessionStore
from codemill.agent.tool import Observation, Preview, ToolContext, ToolSpec
from codemill.agent.toolbox import Toolbox
from codemill.agent.tools.edit import EditTool
from codemill.agent.tools.read_file import ReadFileTool
from codemill.agent.tools.write_file import WriteFileTool
from codemill.agent.workspace import Workspace
from codemill.chat.tool_types import ToolCall

TASK = "Write the report."
NUM_ROUNDS = 5


class AppendTool:
    """A command that has an effect each time it is run."""

    spec = ToolSpec("append", "run", "Appends a line to log.txt.", {"line": {"type": "string"}}, ("line",))

    def preview(self, arguments, context):
        return Preview(arguments["line"])

    def run(self, arguments, context):
        log = context.workspace.root / "log.txt"
        time.sleep(0.01)
        with log.open("a") as file:
            file.write(f"{arguments['line']}\n")
        time.sleep(0.01)
        return Observation(f"{len(log.read_text().splitlines())} lines")


def plan() -> list[list[tuple[str, dict, str, str]]]:
    """Steps: calls with the file that each changes, and what is in it afterwards."""
    steps = []
    for number in range(NUM_ROUNDS):
        name, text = f"part{number}.txt", f"begin-{number}\nmiddle\n"
        new = {"file_path": name, "old_string": "middle", "new_string": f"edited-{number}"}
        rewritten = {"file_path": name, "content": f"rewritten-{number}\n"}
        line = f"line-{number}-end"
        steps += [
            [("write_file", {"file_path": name, "content": text}, name, f"begin-{number}")],
            [("edit", new, name, f"edited-{number}"), ("append", {"line": line}, "log.txt", line)],
            [("read_file", {"absolute_path": name}, name, "")],
            [("write_file", rewritten, name, f"rewritten-{number}")],  # what was read has to be known still
        ]
    return steps


def model_reply(messages) -> Reply:
    time.sleep(0.004)
    said = [message for message in messages if message["role"] == "assistant"]
    if not said:
        return make(0, plan()[0])
    word, number = said[-1]["content"].split()
    step = plan()[int(number)]
    results = [message["content"] for message in messages[messages.index(said[-1]) + 1 :]]
    calls = said[-1]["tool_calls"]
    lost = [index for index, result in enumerate(results) if result == LOST]
    if word == "look":
        name, sought = calls[0]["id"].split(":")[1:]
        if sought not in results[0]:
            return make(number, [call for call in step if call[3] == sought], "again")
    elif lost:
        sought = calls[lost[0]]["id"].split(":")[2]
        name = calls[lost[0]]["id"].split(":")[1]
        return make(number, [("read_file", {"absolute_path": name}, name, sought)], "look")
    following = int(number) + 1
    return make(following, plan()[following]) if following < len(plan()) else Reply("Done.", usage=Usage(1, 1))


def make(number, calls, word="step") -> Reply:
    made = tuple(ToolCall(name, arguments, f"{time.time_ns()}:{file}:{text}") for name, arguments, file, text in calls)
    return Reply(f"{word} {number}", made, usage=Usage(100, 10))


def main(state: Path, root: Path) -> None:
    store = SessionStore(state, root)
    latest = store.latest()
    session = store.open(latest) if latest is not None else store.create(model="scripted")
    tools = [WriteFileTool(), EditTool(), ReadFileTool(), AppendTool()]
    toolbox = Toolbox(tools, ToolContext(Workspace(root)), ApprovalGate("yolo", NobodyToAsk()))
    checkpoints = Checkpoints(session, store.snapshots())
    model = ScriptedModel(model_reply, 100_000)
    agent = Agent(model, toolbox, session, compactor=Summarizer(), checkpointer=checkpoints)
    print("ready", flush=True)
    outcome = agent.run(None if session.requests else TASK)
    print(outcome.status, outcome.text, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
