"""What the model is told before the user says anything, and how much of it there is."""

from pathlib import Path

import pytest

pytest.importorskip("pathspec")

from codemill.agent.model import Reply
from codemill.agent.prompt import MAX_MEMORY, Surroundings, read_memory, system_prompt
from codemill.agent.scripted_model import ScriptedModel
from codemill.agent.session import Session
from codemill.agent.workbench import AgentOptions, Workbench
from codemill.sandbox import IsolationError

MOST_TOKENS = 1500


class Watching(ScriptedModel):
    """Keeps the tools that it was offered."""

    def reply(self, messages, tools, listen, cancel):
        self.tools = list(tools)
        return super().reply(messages, tools, listen, cancel)


@pytest.fixture
def workbench(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    model = Watching(lambda messages: Reply("Done."))
    try:
        with Workbench(AgentOptions(tmp_path / "work"), model, Session(), None) as bench:
            yield bench, model
    except IsolationError as error:
        pytest.skip(f"no isolation here: {error}")


def test_the_prompt_with_all_tools_is_short(workbench, shared_data):
    from codemill.chat.tokenizer import Tokenizer

    bench, model = workbench
    bench.agent.run("")
    tokenizer = Tokenizer.load(shared_data / "tokenizer_qwen")
    messages = [bench.session.messages[0], {"role": "user", "content": ""}]
    assert len(tokenizer.encode_chat(messages, model.tools)) < MOST_TOKENS


def test_tools_have_the_names_that_the_model_knows(workbench):
    bench, _ = workbench
    assert bench.toolbox.names == [
        *("list_directory", "read_file", "read_many_files", "glob", "grep_search", "edit", "write_file"),
        *("run_shell_command", "todo_write", "save_memory", "task", "exit_plan_mode"),
    ]


def test_the_beginning_stays_the_same_from_turn_to_turn(workbench):
    bench, model = workbench
    bench.agent.run("one")
    first = (list(model.seen[-1]), list(model.tools))
    bench.agent.run("two")
    assert model.seen[-1][: len(first[0])] == first[0]
    assert model.tools == first[1]


def test_memory_is_in_the_prompt(tmp_path):
    (tmp_path / "AGENTS.md").write_text("Use tabs.\n")
    (tmp_path / "QWEN.md").write_text("x" * (MAX_MEMORY + 1))
    memory = read_memory(tmp_path, tmp_path / "gone.md")
    text = system_prompt(Surroundings(tmp_path), memory)
    assert "From AGENTS.md:\nUse tabs." in text
    assert "[cut: the file is longer]" in text
    assert "without network" in text
    assert "without network" not in system_prompt(Surroundings(tmp_path, network=True))
