"""The command `llm` against the real server, configured by a file and without a plugin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clients.pages import Page
from clients.scripts import Conversation, call
from clients.serving import serve
from clients.weather import ANSWER, ARGUMENTS, RESULT

pytest.importorskip("llm")

FUNCTION = """
def get_weather(city: str, days: int) -> str:
    "The weather of the coming days"
    return f"{city}: 18 degrees for {days + 0} days"
"""


def llm(home: Path, url: str, *arguments: str) -> str:
    """What the command prints."""
    Page("llm", url).write_files(home, home)
    command = [str(Path(sys.executable).parent / "llm"), "--model", "codemill", "--no-log", *arguments]
    environment = {**os.environ, "LLM_USER_PATH": str(home), "HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, input="", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("options", [[], ["--no-stream"]])
def test_a_tool_is_called_and_its_result_used(tmp_path: Path, options: list[str]) -> None:
    talk = Conversation(call("get_weather", **ARGUMENTS), ANSWER)
    with serve(talk) as url:
        printed = llm(tmp_path, url, "How is the weather?", "--functions", FUNCTION, *options)
    assert printed.strip() == ANSWER
    assert talk.results == [RESULT]


def test_a_schema_binds_the_answer(tmp_path: Path) -> None:
    with serve(lambda prompt: '{"name": "Ada", "age": 36}') as url:
        printed = llm(tmp_path, url, "Invent a person", "--schema", "name, age int")
    assert json.loads(printed) == {"name": "Ada", "age": 36}


def test_json_is_asked_for_by_an_option(tmp_path: Path) -> None:
    with serve(lambda prompt: '{"name": "Ada"}') as url:
        printed = llm(tmp_path, url, "Answer in JSON", "--option", "json_object", "1")
    assert json.loads(printed) == {"name": "Ada"}
