"""The documentation says only what is so: its commands exist, its links lead somewhere, its Python compiles.

Commands stand in ```console blocks after `$ `. Those that answer at once are run; of the others the verb and the
options are looked up in the verb's own help.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
QUICK = re.compile(r"codemill (models\b|--version|([\w ]+ )?--help)")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("$ "):
                    yield page.name, line.removeprefix("$ ")


COMMANDS = sorted(set(commands()))


def run(command: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.run(
        script, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PATH": path}, check=False
    )


@cache
def help_of(verb: str) -> str:
    done = run(f"codemill {verb} --help")
    assert done.returncode == 0, f"codemill {verb} does not exist: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize(("page", "command"), [entry for entry in COMMANDS if QUICK.match(entry[1])])
def test_a_quick_command_works(page: str, command: str) -> None:
    done = run(command)
    assert (done.returncode, done.stderr) == (0, ""), page
    assert done.stdout


@pytest.mark.parametrize(
    ("page", "command"),
    [entry for entry in COMMANDS if entry[1].startswith("codemill ") and not QUICK.match(entry[1])],
)
def test_a_slow_command_has_a_verb_with_these_options(page: str, command: str) -> None:
    _, verb, *rest = shlex.split(command.split("|")[0], comments=True)
    if "\nCommands:" in help_of(verb) and rest and not rest[0].startswith("-"):
        verb = f"{verb} {rest[0]}"
    text = help_of(verb)
    for option in (word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)):
        assert option in text, page


@pytest.mark.parametrize(("page", "command"), [entry for entry in COMMANDS if entry[1].startswith("make ")])
def test_a_make_target_exists(page: str, command: str) -> None:
    target = shlex.split(command)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)
