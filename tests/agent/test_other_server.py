"""The whole program against a server that is not ours: LiteLLM's proxy, whose OpenAI tools are its own code.

Behind it is our server, reached by the Anthropic protocol, since a scripted model must answer: LiteLLM reads its
tool_use blocks and writes the `tool_calls` deltas that the agent gets. `pip install 'litellm[proxy]'` and have
`litellm` in PATH to run it.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("pathspec")
pytest.importorskip("httpx")

from agent.test_end_to_end import CODE, STEPS, repository, run, script, skip_without_isolation
from codemill.engine.scripted import ScriptedEngine
from codemill.server.registry import Registry
from codemill.server.settings import ServerSettings
from server.live import LiveServer

pytestmark = pytest.mark.slow
__all__ = ["repository"]  # a fixture

CONFIG = """\
model_list:
  - model_name: other
    litellm_params: {{model: anthropic/scripted, api_base: "{url}", api_key: none}}
"""
START_SECONDS = 120.0
KEY = f"sk-{secrets.token_hex(32)}"


@pytest.fixture
def behind() -> Iterator[LiveServer]:
    live = LiveServer(Registry.of(ScriptedEngine(script), "scripted"), ServerSettings())
    yield live
    live.stop()


@pytest.fixture
def proxy(behind: LiveServer, tmp_path: Path) -> Iterator[str]:
    """The base URL of LiteLLM's proxy."""
    program = shutil.which("litellm")
    if program is None:
        pytest.skip("litellm is not in PATH: pip install 'litellm[proxy]'")
    config = tmp_path / "litellm.yaml"
    config.write_text(CONFIG.format(url=behind.url))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "LITELLM_MASTER_KEY": KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # the other one is fetched
    }
    log = (tmp_path / "litellm.log").open("w")
    process = subprocess.Popen(
        [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"],
        env=environment,
        stdout=log,
        stderr=log,
    )
    try:
        _wait(f"http://127.0.0.1:{port}/health/liveliness", process, tmp_path / "litellm.log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"litellm has not started: {log.read_text()[-2000:]}")


def test_a_bug_is_mended_through_another_server(repository, proxy, behind):
    task = ["-p", "check.py fails: mend it", "--mode", "yolo", "--output-format", "json"]
    done = run(repository, "--endpoint", proxy, "--model", "other", "--api-key", KEY, *task)
    skip_without_isolation(done)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["status"], outcome["steps"], outcome["text"]) == ("finished", 6, STEPS[-1])
    assert [each["name"] for each in outcome["calls"]] == [
        *("grep_search", "read_file", "run_shell_command", "edit", "run_shell_command"),
    ]
    assert [each["is_error"] for each in outcome["calls"]] == [False, False, True, False, False]
    assert outcome["calls"][4]["text"] == "all is well"
    assert outcome["tokens"] > 0
    assert (repository / "sums.py").read_text() == CODE.replace("-", "+")
