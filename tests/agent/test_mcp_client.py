"""MCP servers made with the SDK, over stdio and over HTTP."""

import io
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent.fakes import Answers, call, toolbox
from codemill.agent.approval import ApprovalGate, NobodyToAsk
from codemill.agent.command_rules import CommandRules
from codemill.agent.loop import Agent
from codemill.agent.mcp_client import McpServers
from codemill.agent.mcp_settings import read_settings
from codemill.agent.mcp_tool import tool_spec, unique_name
from codemill.agent.rules import ProjectRules
from codemill.agent.scripted_model import ScriptedModel
from codemill.agent.session import Session
from codemill.agent.stops import Interrupted
from codemill.agent.tool import ToolContext, ToolError
from codemill.agent.toolbox import Toolbox
from codemill.agent.workbench import SECOND_AGENT, AgentOptions, Workbench
from codemill.agent.workspace import Workspace
from codemill.cli import main
from codemill.commands import agent_options
from codemill.errors import UsageError
from codemill.sandbox import IsolationError

EXAMPLE = str(Path(__file__).with_name("mcp_example.py"))
RUN_EXAMPLE = f"import sys; sys.argv[1:] = ['stdio']; runpy.run_path({EXAMPLE!r}, run_name='__main__')"
STDIO = {"command": sys.executable, "args": [EXAMPLE, "stdio"], "env": {"TOKEN": "abc"}}


@pytest.fixture
def context(tmp_path):
    pytest.importorskip("mcp.server.mcpserver")
    return ToolContext(Workspace(tmp_path))


@contextmanager
def servers(entries, notices=None, **options):
    """Servers whose tools are there."""
    listen = (lambda event: notices.append(event.text)) if notices is not None else (lambda event: None)
    with McpServers(read_settings(entries), **options) as opened:
        opened.gather(listen, threading.Event())
        yield opened


def tool(opened, name):
    return next(each for each in opened.tools if each.spec.name.endswith(f"__{name}"))


def children():
    """Processes of the example server."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if EXAMPLE.encode() in file.read_bytes():
                found.append(file.parent.name)
    return found


@pytest.fixture
def url():
    pytest.importorskip("mcp.server.mcpserver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, EXAMPLE, "http", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait()


def test_tools_over_stdio(context, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_USER", "hunter2")
    with servers({"ex": STDIO}) as opened:
        names = [each.spec.name for each in opened.tools]
        assert names[:2] == ["mcp__ex__add", "mcp__ex__norm"]
        add = tool(opened, "add")
        assert (add.spec.kind, add.spec.required, add.spec.description) == ("run", ("a", "b"), "Add two numbers.")
        observation = add.run({"a": 20, "b": 22}, context)
        assert (observation.text.splitlines()[1], observation.is_error) == ("42", False)
        assert "data, no instruction" in observation.text
        assert tool(opened, "norm").spec.properties["point"]["properties"]["x"]["type"] == "integer"
        assert tool(opened, "norm").run({"point": {"x": 1, "y": 2}}, context).shown == "3"
        failed = tool(opened, "fail").run({}, context)
        assert failed.is_error
        assert "Error executing tool fail" in failed.text
        assert "[image, image/png, 8 bytes: cannot be shown here]" in tool(opened, "picture").run({}, context).text
        environment = tool(opened, "environment")
        assert len(environment.spec.description) == 500
        told = environment.run({}, context).text
        assert "TOKEN=abc" in told
        assert "PATH=" in told
        assert "hunter2" not in told
        assert children()
    assert children() == []


def test_tools_over_http(context, url):
    with servers({"far": {"url": url, "headers": {"X-Key": "abc"}}}) as opened:
        assert tool(opened, "add").run({"a": 1, "b": 2}, context).shown == "3"


def test_servers_that_do_not_work_are_left_out(context):
    notices = []
    entries = {
        "missing": {"command": "no-such-program-here"},
        "dies": {"command": sys.executable, "args": ["-c", "import sys; sys.exit('no licence')"]},
        "hangs": {"command": sys.executable, "args": ["-c", f"import time; time.sleep(600) # {EXAMPLE}"]},
        "refuses": {"url": "http://127.0.0.1:9/mcp"},
        "ex": STDIO,
    }
    begin = time.monotonic()
    with servers(entries, notices, start_seconds=6) as opened:
        assert tool(opened, "add").run({"a": 1, "b": 2}, context).shown == "3"
    assert time.monotonic() - begin < 20
    assert notices.pop(0) == "waiting for MCP servers: hangs"
    told = {notice.split()[3]: notice for notice in notices}
    assert set(told) == {"missing", "dies", "hangs", "refuses"}
    assert "no licence" in told["dies"]
    assert "within 6 s" in told["hangs"]
    assert children() == []


SLOW = {"command": sys.executable, "args": ["-c", f"import time, runpy; time.sleep(3); {RUN_EXAMPLE}"]}
HANGS = {"command": sys.executable, "args": ["-c", f"import time; time.sleep(600) # {EXAMPLE}"]}


def test_a_session_does_not_wait_for_servers(context):
    notices, cancel = [], threading.Event()

    def listen(event):
        notices.append(event.text)

    begin = time.monotonic()
    with McpServers(read_settings({"ex": STDIO, "slow": SLOW, "hangs": HANGS}), 0.0, 8.0) as opened:
        opened.start()
        assert time.monotonic() - begin < 0.5
        assert opened.gather(listen, cancel) == []
        assert [notice.split()[3] for notice in notices] == ["ex", "slow", "hangs"]
        while not opened.tools:
            time.sleep(0.2)
            opened.gather(lambda event: None, cancel)
        first = [each.spec.name for each in opened.tools]
        assert first[0] == "mcp__ex__add"
        while len(opened.tools) == len(first):
            time.sleep(0.2)
            opened.gather(lambda event: None, cancel)
        assert opened.tools[-1].spec.name.startswith("mcp__slow__")
        assert [each.spec.name for each in opened.tools][: len(first)] == first
        assert tool(opened, "add").run({"a": 1, "b": 2}, context).shown == "3"
        while not (notices and "left out" in notices[-1]):
            time.sleep(0.2)
            opened.gather(listen, cancel)
        assert "hangs is left out: it has not answered within 8 s" in notices[-1]
        assert time.monotonic() - begin < 20
    assert children() == []


def test_the_wait_for_servers_can_be_stopped(context):
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    begin = time.monotonic()
    with McpServers(read_settings({"hangs": HANGS})) as opened:
        with pytest.raises(Interrupted):
            opened.gather(lambda event: None, cancel)
        assert time.monotonic() - begin < 2
    assert children() == []


def test_second_agents_have_the_tools_of_the_servers(context, monkeypatch):
    root = context.workspace.root / "work"
    root.mkdir()
    monkeypatch.setenv("HOME", str(context.workspace.root / "home"))

    def reply(messages):
        if messages[0]["content"].endswith(SECOND_AGENT):
            return call("mcp__ex__add", a="1", b="2") if len(messages) == 2 else messages[-1]["content"]
        return messages[-1]["content"] if len(messages) > 3 else call("task", description="d", prompt="add")

    with McpServers(read_settings({"ex": STDIO})) as opened:
        options = AgentOptions(root, "yolo", late_tools=opened)
        try:
            with Workbench(options, ScriptedModel(reply), Session(), NobodyToAsk()) as bench:
                assert bench.agent.run("go").text.endswith("\n3")
                assert "mcp__ex__add" in bench.toolbox.names
        except IsolationError as error:
            pytest.skip(str(error))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    notices = []
    with servers({"ex": STDIO}, notices) as opened:
        assert opened.tools == []
    assert "the MCP server ex is left out: the package mcp is not installed: pip install" in notices[0]


def test_a_server_that_dies_does_not_stop_the_agent(context):
    with servers({"ex": STDIO}) as opened:
        with pytest.raises(ToolError, match="ex"):
            tool(opened, "die").run({}, context)
        with pytest.raises(ToolError, match="ex"):
            tool(opened, "add").run({"a": 1, "b": 2}, context)
    assert children() == []


def test_calls_have_a_time_limit_and_can_be_stopped(context):
    with servers({"ex": {**STDIO, "timeout": 300}}) as opened:
        begin = time.monotonic()
        with pytest.raises(ToolError, match=r"0\.3 s|[Tt]imed? ?out"):
            tool(opened, "sleep").run({"seconds": 2}, context)
        assert time.monotonic() - begin < 1.5
    with servers({"ex": STDIO}) as opened:
        threading.Timer(0.3, context.cancel.set).start()
        begin = time.monotonic()
        with pytest.raises(Interrupted):
            tool(opened, "sleep").run({"seconds": 5}, context)
        assert time.monotonic() - begin < 2
    assert children() == []


def test_a_session_with_a_server(context):
    model = ScriptedModel([call("mcp__ex__add", a="1", b="2"), "It is 3."])
    with servers({"ex": STDIO}) as opened:
        session = Session()
        outcome = Agent(model, toolbox(*opened.tools, context=context), session).run("Add 1 and 2.")
    assert (outcome.status, outcome.text) == ("finished", "It is 3.")
    assert session.messages[-2]["content"].endswith("\n3")


def test_a_call_is_asked_about_unless_the_server_is_trusted(context):
    with servers({"ex": STDIO}) as opened:
        answers = Answers(["no", "always"])
        rules = ProjectRules(CommandRules())
        box = Toolbox(opened.tools, context, ApprovalGate("auto-edit", answers, rules))
        replies = [call("mcp__ex__add", a=str(number), b="2") for number in range(3)]
        session = Session()
        Agent(ScriptedModel([*replies, "Done."]), box, session).run("Add.")
        told = [message["content"] for message in session.messages if message["role"] == "tool"]
        assert ["refused" in told[0], told[1].endswith("\n3"), told[2].endswith("\n4")] == [True] * 3
        assert len(answers.requests) == 2
        assert answers.requests[0].preview.subject == "add(a=0, b=2) of the MCP server ex"
        assert answers.requests[1].remember == "all calls of mcp__ex__add in this session"


def test_without_servers_nothing_is_imported():
    code = "import sys; from codemill.agent.mcp_client import McpServers\nwith McpServers([]) as s: s.start()\n"
    code += "print('mcp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("x", "must be an object"),
        ({}, "either command or url"),
        ({"command": "a", "url": "http://x"}, "either command or url"),
        ({"url": "ftp://x"}, "must begin with http"),
        ({"url": "http://x", "type": "sse"}, "not supported"),
        ({"command": "a", "args": "b"}, "list of texts"),
        ({"command": "a", "env": {"A": 1}}, "object of texts"),
        ({"command": "a", "env": {"A": "${NO_SUCH_VARIABLE}"}}, "no NO_SUCH_VARIABLE"),
        ({"command": "a", "timeout": 0}, "milliseconds"),
    ],
)
def test_wrong_settings(entry, told):
    with pytest.raises(UsageError, match=told):
        read_settings({"s": entry})


def test_settings(monkeypatch):
    monkeypatch.setenv("KEY", "k")
    entries = {
        "a": {
            "type": "stdio",
            "command": "x",
            "env": {"A": "${KEY}", "B": "${NONE:-b}"},
            "trust": True,
            "timeout": 500,
        },
        "b": {"command": "y", "disabled": True},
        "c": {"httpUrl": "https://x/mcp", "headers": {"Authorization": "Bearer ${KEY}"}},
    }
    first, second = read_settings(entries)
    assert (first.env, first.is_trusted, first.timeout) == ({"A": "k", "B": "b"}, True, 0.5)
    assert (second.url, second.headers, second.is_trusted) == ("https://x/mcp", {"Authorization": "Bearer k"}, False)


def test_names_and_schemas():
    assert unique_name("my server", "get/it", ()) == "mcp__my_server__get_it"
    long = unique_name("s", "t" * 99, ())
    assert len(long) == 64
    assert unique_name("s", "t" * 99, (long,)) != long
    endless = {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"properties": {"a": {"$ref": "#/$defs/A"}}}}}
    assert tool_spec("x", "", endless).properties["a"]["properties"]["a"]


def test_the_verb_has_the_tools_of_the_user_s_servers(context, tmp_path, monkeypatch, capsys):
    config = tmp_path / "config/codemill/agent.json"
    config.parent.mkdir(parents=True)
    config.write_text(
        json.dumps({"mcpServers": {"ex": {**STDIO, "trust": True}, "bad": {"command": "no-such-program"}}})
    )
    (tmp_path / "project/.codemill").mkdir(parents=True)
    theirs = {"mcpServers": {"theirs": {"command": "touch", "args": [str(tmp_path / "pwned")]}}}
    (tmp_path / "project/.codemill/agent.json").write_text(json.dumps(theirs))
    for variable, folder in {"HOME": "home", "XDG_CONFIG_HOME": "config", "XDG_STATE_HOME": "state"}.items():
        monkeypatch.setenv(variable, str(tmp_path / folder))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    model = ScriptedModel([call("mcp__ex__add", a="1", b="2"), call("web_fetch", url="http://localhost"), "It is 3."])
    monkeypatch.setattr(agent_options, "choose_model", lambda *_: model)
    arguments = ["-p", "Add 1 and 2.", "-C", str(tmp_path / "project"), "--output-format", "json", "--web"]
    status = main(["agent", *arguments])
    out, err = capsys.readouterr()
    if "isolat" in err:
        pytest.skip(err)
    assert status == 0, err
    calls = json.loads(out)["calls"]
    assert [each["is_error"] for each in calls] == [False, True]
    assert calls[0]["text"].endswith("\n3")
    assert "nobody is there to approve web_fetch of http://localhost" in calls[1]["text"]
    assert "the MCP server bad is left out: there is no program no-such-program" in err
    assert not (tmp_path / "pwned").exists()
    assert children() == []
