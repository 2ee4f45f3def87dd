"""Agents from PyPI, each configured as its page in docs/clients says, against the real server."""

import subprocess
from pathlib import Path

import pytest

from clients.agents import CLIENTS, TEXT, Agent, shell
from clients.pages import Page
from clients.scripts import Conversation, call
from clients.serving import serve

pytestmark = pytest.mark.slow

EDIT = """I mend it.

calc.py
```python
<<<<<<< SEARCH
    return a - b
=======
    return a + b
>>>>>>> REPLACE
```
"""


def test_aider_applies_an_edit(tmp_path: Path) -> None:
    program = CLIENTS / "aider" / "bin" / "aider"
    arguments = ("--message", "Mend add", "--yes-always", "--no-auto-commits", "calc.py")
    aider = Agent("aider", program, arguments, project={"calc.py": "def add(a, b):\n    return a - b\n"})
    talk = Conversation(EDIT)
    with serve(talk) as url:
        done = aider.run(url, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "work" / "calc.py").read_text() == "def add(a, b):\n    return a + b\n"
    assert len(talk.prompts) == 1
    assert "Mend add" in talk.prompts[0]


def test_mini_swe_agent_runs_commands(tmp_path: Path) -> None:
    program = CLIENTS / "mini-swe-agent" / "bin" / "mini"
    arguments = ("--model", "openai/qwen3-coder", "--task", "Write hello.txt", "--yolo", "--exit-immediately")
    file = tmp_path / "work" / "hello.txt"
    write = shell("bash", "command")(file)
    end = call("bash", command="echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")
    talk = Conversation(write, end)
    with serve(talk) as url:
        done = Agent("python-agents", program, arguments).run(url, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert file.read_text().strip() == TEXT
    assert '"returncode": 0' in talk.results[0]


def test_smolagents_uses_the_tool_of_the_page(tmp_path: Path) -> None:
    python = CLIENTS / "smolagents" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} is not there: make test-clients installs it")
    seen = "Observation:\nParis: 18 degrees"  # smolagents writes what a tool answered as the user's words

    def script(prompt: str) -> str:
        return call("final_answer", answer="It is warm.") if seen in prompt else call("get_weather", city="Paris")

    with serve(script) as url:
        program = tmp_path / "weather.py"
        program.write_text(Page("python-agents", url).program)
        command = [str(python), str(program)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("It is warm.")
