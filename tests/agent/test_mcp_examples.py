"""Servers that come with the SDK itself: the examples of its source distribution, in a session of the whole program.

`CODEMILL_MCP_EXAMPLES` names the folder `examples` of an unpacked one; without it, pip fetches that of the version that
is installed.
"""

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("pathspec")
pytest.importorskip("httpx")
pytest.importorskip("mcp.server.mcpserver")
pytest.importorskip("click")

from agent.fakes import call
from agent.test_end_to_end import run, skip_without_isolation
from codemill.engine.scripted import ScriptedEngine
from codemill.server.registry import Registry
from codemill.server.settings import ServerSettings
from server.live import LiveServer

pytestmark = pytest.mark.slow
NAMES = ("echo__echo", "pages__tool_25", *(f"all__test_{name}" for name in ("simple_text", "image_content")))
STEPS = [
    call("mcp__echo__echo", text="to be told back"),
    call("mcp__pages__tool_25", input="x"),
    call("mcp__all__test_simple_text"),
    call("mcp__all__test_image_content"),
    call("mcp__all__test_error_handling"),
    call("mcp__all__test_elicitation", message="what is your name?"),
    "All were called.",
]


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    given = os.environ.get("CODEMILL_MCP_EXAMPLES")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("mcp")
    wanted = f"mcp=={importlib.metadata.version('mcp')}"
    command = [sys.executable, "-m", "pip", "download", wanted, "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    found = list(folder.glob("mcp-*.tar.gz"))
    if not found:
        pytest.skip(f"the source distribution of {wanted} cannot be fetched: {done.stderr[-200:]}")
    with tarfile.open(found[0]) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("mcp-*/examples"))


@pytest.fixture
def everything(examples: Path) -> Iterator[str]:
    """The URL of the example that speaks HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mcp_everything_server", "--port", str(port)],
        env={**os.environ, "PYTHONPATH": str(examples / "servers/everything-server")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait()


def test_a_session_with_the_sdk_s_own_examples(examples, everything, tmp_path):
    home, project = tmp_path / "home", tmp_path / "project"
    project.mkdir()
    script = f"import sys; sys.argv = ['mcp', 'run', {str(examples / 'mcpserver/simple_echo.py')!r}]; "
    pages = {"PYTHONPATH": str(examples / "servers/simple-pagination")}
    servers = {
        "echo": {"command": sys.executable, "args": ["-c", f"{script}from mcp.cli import app; app()"], "trust": True},
        "pages": {"command": sys.executable, "args": ["-m", "mcp_simple_pagination"], "env": pages, "trust": True},
        "all": {"url": everything, "trust": True},
    }
    config = home / ".config/codemill/agent.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"mcpServers": servers}))
    prompts: list[str] = []

    def reply(prompt: str) -> str:
        prompts.append(prompt)
        return STEPS[prompt.count("<tool_response>")]

    live = LiveServer(Registry.of(ScriptedEngine(reply), "scripted"), ServerSettings())
    try:
        done = run(project, "--endpoint", live.url, "-p", "call them", "--output-format", "json")
    finally:
        live.stop()
    skip_without_isolation(done)
    assert done.returncode == 0, done.stderr
    calls = json.loads(done.stdout)["calls"]
    assert [each["is_error"] for each in calls] == [False, False, False, False, True, False], calls
    told = [each["text"].partition("\n")[2] for each in calls]
    assert told[0] == "to be told back"
    assert told[1] == "Called tool 'tool_25' with arguments: {'input': 'x'}"
    assert told[2] == "This is a simple text response for testing."
    assert told[3].startswith("[image, image/png, ")
    assert "intentionally returns an error" in told[4]
    assert told[5].startswith("Elicitation not supported")  # nobody can be asked in between
    for name in NAMES:
        assert f"<name>mcp__{name}</name>" in prompts[0]
