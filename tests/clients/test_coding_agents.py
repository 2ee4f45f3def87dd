"""Coding agents from npm, each configured as its page in docs/clients says, against the real server."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from clients.agents import AGENTS, CLAUDE_CODE, CODEX, QWEN_CODE, TEXT, Agent
from clients.scripts import Conversation, call
from clients.serving import serve
from codemill.server.settings import ServerSettings

pytestmark = pytest.mark.slow
EACH = pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.page)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WINDOW = 200_000  # the embedded tokenizer makes more tokens of a prompt than Qwen's


@EACH
def test_a_file_is_written_and_the_result_read(agent: Agent, tmp_path: Path) -> None:
    file = tmp_path / "work" / "hello.txt"
    talk = Conversation("I write it.\n" + agent.call(file), "All is done.")
    with serve(talk, max_model_len=WINDOW) as url:
        done = agent.run(url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert file.read_text().strip() == TEXT
    assert "All is done." in done.stdout
    assert len(talk.results) == 1
    assert len(talk.prompts) == 2
    assert_begins_like(talk.prompts[1], talk.prompts[0])


@EACH
def test_calls_come_in_parallel_and_after_thinking(agent: Agent, tmp_path: Path) -> None:
    files = [tmp_path / "work" / name for name in ("one.txt", "two.txt")]
    thoughts = "<think>\nTwo files are needed.\n</think>\n\n"
    talk = Conversation(thoughts + "\n".join(map(agent.call, files)), "Not yet.", "All is done.")
    with serve(talk, max_model_len=WINDOW) as url:
        done = agent.run(url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [file.read_text().strip() for file in files] == [TEXT, TEXT]
    assert "All is done." in done.stdout
    assert len(talk.results) == 2
    assert_begins_like(talk.prompts[1], talk.prompts[0])


@pytest.mark.parametrize("agent", [QWEN_CODE, CODEX], ids=lambda agent: agent.page)
def test_it_waits_while_a_long_prompt_is_read(agent: Agent, tmp_path: Path) -> None:
    talk = Conversation(agent.call(tmp_path / "work" / "hello.txt"), "All is done.")
    settings = ServerSettings(heartbeat_seconds=1)
    with serve(talk, settings, max_model_len=WINDOW, prefill_seconds=7) as url:
        done = agent.run(url, tmp_path, impatient=True)
    assert done.returncode == 0, done.stderr
    assert "All is done." in done.stdout
    assert len(talk.prompts) == 2  # nothing was asked twice


@EACH
def test_a_prompt_that_is_too_long_is_told_to_the_user(agent: Agent, tmp_path: Path) -> None:
    with serve(lambda prompt: "Hi", max_model_len=600) as url:
        done = agent.run(url, tmp_path)
    said = (done.stdout + done.stderr).lower()
    assert any(words in said for words in ("maximum context length", "context window", "prompt is too long")), said


def test_claude_code_loads_a_tool_when_it_is_needed(tmp_path: Path) -> None:
    talk = Conversation(call("ToolSearch", query="select:NotebookEdit", max_results=1), "All is done.")
    everything = replace(CLAUDE_CODE, arguments=("--print", "Change the notebook"))
    with serve(talk, max_model_len=WINDOW) as url:
        done = everything.run(url, tmp_path, ENABLE_TOOL_SEARCH="true")
    assert "All is done." in done.stdout, done.stderr
    (found,) = talk.results
    assert "notebook_path" in found  # a parameter of the tool
    assert "notebook_path" not in talk.prompts[0]
    assert_begins_like(talk.prompts[1], talk.prompts[0])


def test_claude_code_answers_in_the_form_of_a_schema(tmp_path: Path) -> None:
    talk = Conversation(call("StructuredOutput", city="Paris"), "All is done.")
    with serve(talk, max_model_len=WINDOW) as url:
        done = CLAUDE_CODE.run(url, tmp_path, "--output-format", "json", "--json-schema", json.dumps(SCHEMA))
    assert json.loads(done.stdout)["structured_output"] == {"city": "Paris"}, done.stderr


def test_codex_answers_in_the_form_of_a_schema_after_a_call(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    file = tmp_path / "work" / "hello.txt"
    talk = Conversation(CODEX.call(file), '{"city": "Paris"}')
    with serve(talk, max_model_len=WINDOW) as url:
        done = CODEX.run(url, tmp_path, "--output-schema", str(schema))
    assert json.loads(done.stdout) == {"city": "Paris"}, done.stderr
    assert file.read_text().strip() == TEXT


def assert_begins_like(later: str, earlier: str) -> None:
    """What a turn repeats of the one before is what the prefix cache saves."""
    assert later.startswith(earlier.removesuffix("<|im_start|>assistant\n"))
