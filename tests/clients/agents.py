"""Coding agents, and how each is run without anybody there."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from clients.pages import Page
from clients.scripts import call

ROOT = Path(__file__).resolve().parents[2]
# What `make test-clients` installs.
CLIENTS = Path(os.environ.get("CODEMILL_CLIENTS", ROOT / ".venv" / "clients"))
NODE = CLIENTS / "node_modules" / ".bin"
TASK = "Write hello.txt"
TEXT = "hello from the model"
Calls = Callable[[Path], str]


@dataclass(frozen=True)
class Agent:
    """program: its file. page: of docs/clients. arguments: of a run that asks nobody.

    call: what a model says to write TEXT into a file. impatient: variables or, if they begin with "-",
    arguments, that make it give up on a stream without data after three seconds. project: files that are there.
    """

    page: str
    program: Path
    arguments: tuple[str, ...]
    call: Calls = str
    impatient: dict[str, str] = field(default_factory=dict)
    project: dict[str, str] = field(default_factory=dict)

    def run(
        self, url: str, folder: Path, *more: str, impatient: bool = False, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it in `folder`/work, with a home of its own, more arguments and more variables."""
        if not self.program.exists():
            pytest.skip(f"{self.program} is not there: make test-clients installs it")
        home, work = folder / "home", folder / "work"
        for each in (home, work):
            each.mkdir()
        subprocess.run(["git", "init", "--quiet", work], check=True)
        page = Page(self.page, url)
        page.write_files(home, work)
        for name, text in self.project.items():
            work.joinpath(name).write_text(text)
        extra = self.impatient if impatient else {}
        environment = {
            "PATH": f"{NODE}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "SHELL": "/bin/bash",
            **page.variables,
            **{key: value for key, value in extra.items() if not key.startswith("-")},
            **variables,
        }
        options = [word for key, value in extra.items() if key.startswith("-") for word in (key, value)]
        arguments = [word.replace("~", str(home)) if word.startswith("~/") else word for word in self.arguments]
        command = [str(self.program), *arguments, *options, *more]
        return subprocess.run(
            command, cwd=work, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip


def shell(name: str, parameter: str) -> Calls:
    """A tool that runs a command."""
    return lambda path: call(name, **{parameter: f"echo '{TEXT}' > {path}"})


def writer(name: str, parameter: str) -> Calls:
    """A tool that writes a file."""
    return lambda path: call(name, **{parameter: path, "content": TEXT})


QWEN_CODE = Agent(
    "qwen-code",
    NODE / "qwen",
    ("--prompt", TASK, "--approval-mode", "auto-edit"),
    writer("write_file", "file_path"),
    {"QWEN_STREAM_IDLE_TIMEOUT_MS": "3000"},
)
OPENCODE = Agent("opencode", NODE / "opencode", ("run", TASK), writer("write", "filePath"))
CODEX = Agent(
    "codex",
    NODE / "codex",
    # codex's sandbox needs user namespaces, which containers often lack.
    ("exec", "--dangerously-bypass-approvals-and-sandbox", TASK),
    shell("exec_command", "cmd"),
    {"--config": "model_providers.codemill.stream_idle_timeout_ms=3000"},
)
CLAUDE_CODE = Agent(
    "claude-code",
    NODE / "claude",
    ("--print", TASK, "--tools", "Bash,Read,Edit,Write", "--permission-mode", "acceptEdits"),
    writer("Write", "file_path"),
)
CONTINUE = Agent(
    "continue",
    NODE / "cn",
    ("--config", "~/.continue/config.yaml", "--auto", "--print", TASK),
    lambda path: call("Write", filepath=path.name, content=TEXT),
)
AGENTS = (QWEN_CODE, OPENCODE, CODEX, CLAUDE_CODE, CONTINUE)
