"""`codemill agent docs`: pages about a project's modules."""

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.commands import add_verb, agent_options, options, print_json

if TYPE_CHECKING:
    from codemill.agent.workflows.docs import DocsReport, Documentation

EXAMPLES = """
codemill agent docs
codemill agent docs src/shop --output docs/modules
codemill agent docs --check
"""


def register(group: typer.Typer) -> None:
    add_verb(group, docs, EXAMPLES)


def docs(
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="A file or folder of the project.")] = ".",
    model: options.Model = None,
    endpoint: agent_options.Endpoint = None,
    api_key: agent_options.ApiKey = None,
    directory: Annotated[Path, typer.Option("--directory", "-C", help="The project.")] = Path(),
    output: Annotated[str, typer.Option(metavar="FOLDER", help="Where the pages are.")] = "docs/modules",
    check: Annotated[
        bool, typer.Option("--check", help="Only say what is not up to date; status 1 if any is.")
    ] = False,
    as_json: options.AsJson = False,
    temperature: options.Temperature = None,
    quantization: options.Quantization = None,
    max_model_len: options.MaxModelLen = None,
    threads: options.Threads = None,
    prefix_cache_dir: options.PrefixCacheDir = None,
) -> None:
    """Write a page for each module whose source has changed; status 1 if one could not be written."""
    from codemill.agent.headless import HeadlessOutput
    from codemill.agent.stops import Interrupted
    from codemill.agent.workflows import docs as workflow

    documentation = workflow.Documentation(agent_options.project(directory).root, output, path)
    if check:
        raise typer.Exit(_check(documentation, as_json))
    asked = agent_options.choose_model(
        model, endpoint, api_key, temperature, max_model_len, quantization, threads, prefix_cache_dir
    )
    cancel = threading.Event()
    try:
        with agent_options.interruptible(cancel):
            report = workflow.write_docs(documentation, asked, HeadlessOutput("text").listener, cancel)
    except Interrupted:
        raise typer.Exit(130) from None
    print_json(vars(report)) if as_json else _print(report)
    raise typer.Exit(1 if report.failed else 0)


def _check(documentation: "Documentation", as_json: bool) -> int:
    """Say what is not up to date -> the exit status."""
    stale = list(documentation.stale(documentation.sources()))
    if as_json:
        print_json([vars(each) for each in stale])
    else:
        print("".join(f"{each.source}: {each.reason}\n" for each in stale), end="")
        print(f"{len(stale)} pages are not up to date", file=sys.stderr)
    return 1 if stale else 0


def _print(report: "DocsReport") -> None:
    from codemill.agent.workflows.visible import visible

    for name in report.written:
        print(f"written: {name}")
    for name in report.removed:
        print(f"removed: {name}")
    for name in report.kept:
        print(f"kept, since it was edited by hand, though its source is gone: {name}")
    for name, problems in report.repaired.items():
        print(visible(f"left out of {name}: {'; '.join(problems)}"), file=sys.stderr)
    for name, why in report.failed.items():
        print(visible(f"NOT WRITTEN: {name}: {why}"), file=sys.stderr)
    print(f"{len(report.written)} pages written, {len(report.current)} were up to date", file=sys.stderr)
