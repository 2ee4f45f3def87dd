"""The verbs of the command line, one file each.

A verb's module has a `register(app)` that adds it, and is named in `codemill.cli.VERBS`. It imports its work inside the
verb's function: importing the module must stay cheap, because `codemill --help` imports all of them. A verb with verbs
of its own, such as `train pretrain`, registers a `typer.Typer` by `app.add_typer` and adds its verbs to that.
"""

import json
from collections.abc import Callable
from typing import Any

import typer


def add_verb(app: typer.Typer, function: Callable[..., None], examples: str) -> None:
    """Add `function` as a verb named after it; its `--help` ends with `examples`, one command on each line."""
    app.command(epilog=epilog(examples))(function)


def epilog(examples: str) -> str:
    """The end of a help page; also for the page of a verb with verbs of its own."""
    lines = [f"  {line.strip()}" for line in examples.strip().splitlines()]
    # A lone backspace tells the help formatter to keep the line breaks of the paragraph.
    return "\n".join(["\b", "Examples:", *lines])


def print_json(value: Any) -> None:
    """The form that programs read: one JSON value on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
