"""Coding agents from npm, each configured as its page in docs/clients says, against the real server."""

from pathlib import Path

import pytest

from clients.agents import AGENTS, CODEX, QWEN_CODE, TEXT, Agent
from clients.scripts import Conversation
from clients.serving import serve
from codemill.server.settings import ServerSettings

pytestmark = pytest.mark.slow
EACH = pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.page)
WINDOW = 200_000  # the embedded tokenizer makes more tokens of a prompt than Qwen's


@EACH
def test_a_file_is_written_and_the_result_read(agent: Agent, tmp_path: Path) -> None:
    talk = Conversation("I write it.\n" + agent.call(tmp_path / "work"), "All is done.")
    with serve(talk, max_model_len=WINDOW) as url:
        done = agent.run(url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / "hello.txt").read_text().strip() == TEXT
    assert "All is done." in done.stdout
    assert len(talk.results) == 1
    assert len(talk.prompts) == 2
    # What the second turn repeats is what the prefix cache saves.
    shared = len(talk.prompts[0].removesuffix("<|im_start|>assistant\n"))
    assert talk.prompts[1][:shared] == talk.prompts[0][:shared]


@pytest.mark.parametrize("agent", [QWEN_CODE, CODEX], ids=lambda agent: agent.page)
def test_it_waits_while_a_long_prompt_is_read(agent: Agent, tmp_path: Path) -> None:
    talk = Conversation(agent.call(tmp_path / "work"), "All is done.")
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
