"""`codemill agent review`: findings in a diff."""

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codemill.commands import add_verb, agent_options, options, print_json
from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill.agent.workflows.review import Review

EXAMPLES = """
codemill agent review
codemill agent review --staged
codemill agent review main...HEAD --sarif > review.sarif
codemill agent review HEAD~3.. --fail-on medium --endpoint http://127.0.0.1:8000/v1
"""


def register(group: typer.Typer) -> None:
    add_verb(group, review, EXAMPLES)


def review(
    commits: Annotated[
        str | None, typer.Argument(metavar="[RANGE]", help="As for git diff; default: what is not committed.")
    ] = None,
    model: options.Model = None,
    endpoint: agent_options.Endpoint = None,
    api_key: agent_options.ApiKey = None,
    directory: Annotated[Path, typer.Option("--directory", "-C", help="The project.")] = Path(),
    staged: Annotated[bool, typer.Option("--staged", help="What is staged.")] = False,
    fail_on: Annotated[
        str, typer.Option(metavar="SEVERITY", help="Status 1 for one of it or above: low to critical, or none.")
    ] = "high",
    as_json: options.AsJson = False,
    as_sarif: Annotated[bool, typer.Option("--sarif", help="Print SARIF 2.1.0.")] = False,
    max_steps: Annotated[int, typer.Option(min=1, help="Replies of the model for one part of the diff.")] = 30,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens for one part.")] = None,
    temperature: options.Temperature = None,
    quantization: options.Quantization = None,
    max_model_len: options.MaxModelLen = None,
    threads: options.Threads = None,
    prefix_cache_dir: options.PrefixCacheDir = None,
) -> None:
    """Find what is wrong with a change; status 1 if something grave is, 3 if a part could not be reviewed."""
    from codemill.agent.budget import Budget
    from codemill.agent.headless import HeadlessOutput
    from codemill.agent.stops import Interrupted
    from codemill.agent.workflows import review as workflow
    from codemill.agent.workflows.git_diff import read_diff, untracked

    limit = _severity(fail_on)
    if as_json and as_sarif:
        raise UsageError("give --json or --sarif, not both")
    chosen = agent_options.project(directory, Budget(max_steps, max_tokens), mode="plan")
    files = read_diff(chosen.root, commits, staged)
    asked = agent_options.choose_model(
        model, endpoint, api_key, temperature, max_model_len, quantization, threads, prefix_cache_dir
    )
    cancel = threading.Event()
    try:
        with agent_options.interruptible(cancel):
            result = workflow.review(files, chosen, asked, HeadlessOutput("text").listener, cancel)
    except Interrupted:
        raise typer.Exit(130) from None
    if commits is None and not staged:
        result.skipped |= dict.fromkeys(untracked(chosen.root), "not tracked: git add it")
    _print(result, as_json, as_sarif)
    raise typer.Exit(result.exit_status(limit))


def _severity(name: str) -> Any:
    """None for none. Raises UsageError."""
    from codemill.agent.workflows.review import SEVERITIES

    if name not in (*SEVERITIES, "none"):
        raise UsageError(f"--fail-on {name}: choose {', '.join(SEVERITIES)} or none")
    return None if name == "none" else name


def _print(result: "Review", as_json: bool, as_sarif: bool) -> None:
    from codemill.agent.workflows.review_output import json_object, sarif_object, summary_lines, text_lines

    if as_json or as_sarif:
        print_json(json_object(result) if as_json else sarif_object(result))
    else:
        print("".join(f"{line}\n" for line in text_lines(result)), end="")
    print("\n".join(summary_lines(result)), file=sys.stderr)
