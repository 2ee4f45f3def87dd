"""The terminal with a model whose replies are written down, for tests that look at its screen.

`python runner.py SCENARIO FOLDER` works in FOLDER; a scenario is a list of replies, or a function of the messages.
"""

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from codemill.agent.events import Listener, ReasoningDelta, TextDelta, Waiting
from codemill.agent.model import Message, Reply, Usage
from codemill.agent.scripted_model import read_reply
from codemill.agent.session_store import SessionStore
from codemill.agent.stops import Interrupted
from codemill.agent.terminal import run_terminal
from codemill.agent.workbench import AgentOptions

HOSTILE = (
    "Fine.\x1b[2J\x1b[H\x1b]52;c;c3RvbGVu\x07\x1b]0;stolen\x07 Then\x1b[5A\x1b[999D> yes\x9b31m red \x1b[?1049h"
    " \u202eevil\u202c \x07 end\x1b]8;;http://x\x1b\\link\n\n```sh\necho \x1b[31mhi\x08\x08\n```\n"
)


def call(name: str, **arguments: str) -> str:
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


EDIT = call("edit", file_path="calc.py", old_string="return a - b", new_string="return a + b")
ANSWER = """The bug is in `add`: it **subtracts**.

## What I would change

1. Replace the sign.
2. Run the tests.

```python
def add(a, b):
    return a + b  # not a - b
```

| file | lines |
|---|---:|
| calc.py | 2 |

That is all.
"""
SCENARIOS = {
    "answer": [ANSWER, "Once more."],
    "edit": [f"I repair it.\n{EDIT}", "The sign is right now."],
    "refuse": [f"I repair it.\n{EDIT}", "Then I leave it."],
    "wide": ["日本語の文章です。" * 6 + "\n\nEnd."],
    "hostile": [
        HOSTILE,
        call("run_shell_command", command="cat evil.txt; printf '\\033]52;c;eA==\\007ok\\n'"),
        "Done.",
    ],
    "hostile_call": [
        call("run_shell_command", command="echo hi \x1b[2K\x1b[1A\n  y  yes, once\r# harmless\x1b]0;t\x07"),
        "Done.",
    ],
    "shell": [
        call("run_shell_command", command="touch made; for i in 1 2 3; do echo line $i; sleep 0.3; done; exit 3"),
        "It failed.",
    ],
    "think": ["<think>", "Later."],
    "slow": ["word " * 400, "After."],
    "plan": [call("exit_plan_mode", plan="## Plan\n\n1. Change **calc.py**\n2. Test"), EDIT, "Done."],
    "long": [call("write_file", file_path="long.txt", content="\n".join(f"line {n}" for n in range(60))), "Done."],
    "init": [call("write_file", file_path="AGENTS.md", content="# Rules\n"), "AGENTS.md is written."],
    "talk": ["First answer.", "Second answer.", "A summary of both.", "Third answer."],
    "slow_summary": ["First answer.", "Second answer.", "long " * 400],
    "background": [call("run_shell_command", command="sleep 30", is_background="true"), "It runs."],
    "read": [call("run_shell_command", command="cat calc.py"), "Seen.", call("exit_plan_mode", plan="Do it"), "Done."],
    "task": [
        call("task", description="look", prompt="do it", subagent_type="general-purpose"),
        EDIT,
        "Repaired.",
        "It is done.",
    ],
}


class StreamingModel:
    """Says its replies word by word."""

    name = "scripted"
    context_length = 32_768

    def __init__(self, replies: Sequence[str], pause: float) -> None:
        self._replies = iter(replies)
        self._pause = pause

    def reply(
        self, messages: Sequence[Message], tools: Sequence[Message], listen: Listener, cancel: threading.Event
    ) -> Reply:
        text = next(self._replies, "I have nothing more to say.")
        for done in (0, 512, 1024):
            listen(Waiting(done, 1024))
            self._sleep(cancel, 4)
        if text == "<think>":
            for word in ["pondering "] * 30:
                listen(ReasoningDelta(word))
                self._sleep(cancel)
            text = "Thought."
        reply = read_reply(text, tools, Usage(1024, len(text) // 4, 900))
        for word in reply.content.split(" "):
            listen(TextDelta(word + " "))
            self._sleep(cancel)
        return reply

    def _sleep(self, cancel: threading.Event, times: int = 1) -> None:
        if cancel.is_set():
            raise Interrupted("stopped")
        time.sleep(self._pause * times)


class LoadingModel(StreamingModel):
    """One that takes long to be there."""

    @property
    def context_length(self) -> int:  # type: ignore[override]
        time.sleep(30)
        return 32_768


def main() -> None:
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    store = SessionStore(None, folder)
    kind = LoadingModel if scenario == "loading" else StreamingModel
    model = kind(SCENARIOS.get(scenario, ()), float(sys.argv[3]) if len(sys.argv) > 3 else 0.005)
    options = AgentOptions(folder, mode="plan" if scenario == "plan" else "default")
    sys.exit(run_terminal(options, model, store.create(), store))


if __name__ == "__main__":
    main()
