"""`codemill agent fix`: make a command pass."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.commands import add_verb, agent_options, options, print_json

if TYPE_CHECKING:
    from codemill.agent.workflows.fix import FixReport

EXAMPLES = """
codemill agent fix 'pytest -q' --model ./qwen3-coder-30b-int4
codemill agent fix 'npm test' --max-steps 40 --json
codemill agent fix 'pytest tests/test_cart.py' --allow-tests
"""


def register(group: typer.Typer) -> None:
    add_verb(group, fix, EXAMPLES)


def fix(
    command: Annotated[str, typer.Argument(help="What must pass, run by bash in the sandbox.")],
    model: options.Model = None,
    endpoint: agent_options.Endpoint = None,
    api_key: agent_options.ApiKey = None,
    directory: Annotated[Path, typer.Option("--directory", "-C", help="The project.")] = Path(),
    allow_tests: Annotated[bool, typer.Option("--allow-tests", help="Let tests be changed, too.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one run of the command.")] = 600.0,
    network: Annotated[bool, typer.Option("--network", help="Let commands reach the network.")] = False,
    max_steps: Annotated[int, typer.Option(min=1, help="Replies of the model, all in all.")] = 60,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens, cached ones not counted.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Time, all in all.")] = None,
    as_json: options.AsJson = False,
    temperature: options.Temperature = None,
    quantization: options.Quantization = None,
    max_model_len: options.MaxModelLen = None,
    threads: options.Threads = None,
    prefix_cache_dir: options.PrefixCacheDir = None,
) -> None:
    """Edit until a command passes; status 0 if it does, 1 if not, 3 if the budget ended first."""
    from contextlib import ExitStack

    from codemill.agent.budget import Budget
    from codemill.agent.headless import HeadlessOutput
    from codemill.agent.workflows import fix as workflow

    chosen = agent_options.project(directory, Budget(max_steps, max_tokens, max_seconds), network)
    asked = agent_options.choose_model(
        model, endpoint, api_key, temperature, max_model_len, quantization, threads, prefix_cache_dir
    )
    task = workflow.FixTask(command, timeout, allow_tests)
    with ExitStack() as stack:
        listen = HeadlessOutput("text").listener
        report = workflow.fix(
            task, chosen, asked, listen, lambda bench: stack.enter_context(agent_options.interruptible(bench.cancel))
        )
    print_json(vars(report)) if as_json else _print(report)
    raise typer.Exit(report.exit_status)


def _print(report: "FixReport") -> None:
    """The diff on standard output, the rest beside it."""
    from codemill.agent.workflows.visible import visible

    print(visible(report.diff), end="")
    if report.status == "passed" and not report.rounds:
        lines = [f"`{report.command}` passes already: nothing to do"]
    elif report.status == "passed":
        lines = [f"`{report.command}` passes now"]
    else:
        lines = [visible(report.output[-2000:].rstrip())]
        lines += [f"`{report.command}` does not pass{': ' if report.reason else ''}{visible(report.reason)}"]
    if report.put_back:
        lines.append(f"the model changed tests, which were put back: {', '.join(report.put_back)}")
    if report.doubtful:
        lines.append(f"look at {', '.join(report.doubtful)}: it may decide which tests are run")
    lines.append(f"[{report.steps} steps, {report.tokens} tokens, {report.seconds:.1f} s]")
    print("\n".join(lines), file=sys.stderr)
