"""`codemill agent`: the coding agent, in the terminal or without one."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codemill.commands import agent_options, agent_workflows, epilog, options
from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill.agent.model import Model
    from codemill.agent.session import Session
    from codemill.agent.session_store import SessionStore
    from codemill.agent.workbench import AgentOptions

EXAMPLES = """
codemill agent
codemill agent --model ./qwen3-coder-30b-int4
codemill agent --endpoint http://127.0.0.1:8000/v1 --continue
codemill agent -p 'Why does test_cart fail?' --mode plan
git diff | codemill agent -p 'Write a commit message for this diff.' --output-format json
"""


def register(app: typer.Typer) -> None:
    # A group: the workflows are verbs of their own.
    group = typer.Typer(help=agent.__doc__, epilog=epilog(EXAMPLES), rich_markup_mode=None)
    group.callback(invoke_without_command=True)(agent)
    agent_workflows.register(group)
    app.add_typer(group, name="agent")


def agent(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Work on this and end; standard input is added to it.")
    ] = None,
    model: options.Model = None,
    endpoint: agent_options.Endpoint = None,
    api_key: agent_options.ApiKey = None,
    mode: Annotated[str | None, typer.Option(help="plan, default, auto-edit or yolo; with -p auto-edit.")] = None,
    directory: Annotated[Path, typer.Option("--directory", "-C", help="The workspace.")] = Path(),
    resume_last: Annotated[bool, typer.Option("--continue", help="Go on with the latest session.")] = False,
    resume: Annotated[str | None, typer.Option(metavar="ID", help="Go on with a session.")] = None,
    fork: Annotated[bool, typer.Option("--fork", help="Leave that session as it is, and go on in a copy.")] = False,
    network: Annotated[bool, typer.Option("--network", help="Let commands reach the network.")] = False,
    web: Annotated[bool, typer.Option("--web", help="Let the agent fetch pages; each is asked about.")] = False,
    max_steps: Annotated[int, typer.Option(min=1, help="Replies of the model for one task.")] = 100,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens for one task, cached ones not counted.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Time for one task.")] = None,
    output_format: Annotated[str, typer.Option(help="With -p: text, json or stream-json.")] = "text",
    temperature: options.Temperature = None,
    quantization: options.Quantization = None,
    max_model_len: options.MaxModelLen = None,
    threads: options.Threads = None,
    prefix_cache_dir: options.PrefixCacheDir = None,
) -> None:
    """Work on a repository: read, edit, run, until a task is done."""
    from codemill.agent.budget import Budget
    from codemill.agent.configuration import read_configuration
    from codemill.agent.session_store import SessionStore
    from codemill.agent.workbench import AgentOptions

    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if not directory.is_dir():
        raise UsageError(f"--directory {directory}: no such folder")
    root = directory.resolve()
    chosen = AgentOptions(
        root,
        mode=_mode(mode, prompt),
        budget=Budget(max_steps, max_tokens, max_seconds),
        network=network,
        configuration=read_configuration(root),
    )
    asked = agent_options.choose_model(
        model, endpoint, api_key, temperature, max_model_len, quantization, threads, prefix_cache_dir
    )
    store = SessionStore(None, root)
    session = _session(store, resume_last, resume, fork, model or ("" if endpoint else "embedded"))
    is_interactive = prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    with agent_options.more_tools(chosen, web, is_interactive) as equipped:
        if is_interactive:
            from codemill.agent.terminal import run_terminal

            status = run_terminal(equipped, asked, session, store)
        else:
            status = _run_once(equipped, asked, session, store, _task(prompt), output_format)
    store.tidy()
    raise typer.Exit(status)


def _refuse_options(context: typer.Context) -> None:
    """A workflow has options of its own. Raises UsageError for those before its name, which it would not see."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} stands before {context.invoked_subcommand}: give the options after its name")


def _run_once(
    chosen: "AgentOptions", model: "Model", session: "Session", store: "SessionStore", task: str, output_format: str
) -> int:
    """Work on one task -> the exit status."""
    from codemill.agent.approval import NobodyToAsk
    from codemill.agent.headless import HeadlessOutput
    from codemill.agent.workbench import Workbench

    output = HeadlessOutput(output_format)
    workbench = Workbench(chosen, model, session, NobodyToAsk(), output.listener, store.snapshots_folder)
    with workbench, agent_options.interruptible(workbench.cancel):
        outcome = workbench.agent.run(task)
    return output.finish(outcome, session.id)


def _mode(mode: str | None, prompt: str | None) -> Any:
    """Raises UsageError later if there is no such mode."""
    return mode or ("default" if prompt is None else "auto-edit")


def _session(store: "SessionStore", resume_last: bool, resume: str | None, fork: bool, model: str) -> "Session":
    if resume is None and not resume_last:
        if fork:
            raise UsageError("--fork needs --continue or --resume ID: it says what to copy")
        return store.create(cwd=os.getcwd(), model=model)  # a server is not asked yet: it may be slow
    info = store.find(resume) if resume is not None else store.latest()
    if info is None:
        raise UsageError("--continue: there is no session of this folder yet")
    return store.fork(info) if fork else store.open(info)


def _task(prompt: str | None) -> str:
    """What is asked, with what is piped in. Raises UsageError if that is nothing."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    parts = [part for part in (prompt, piped.strip() and f"<input>\n{piped}\n</input>" if prompt else piped) if part]
    if not parts or not "".join(parts).strip():
        raise UsageError("nothing to do: give -p 'TASK', or a task on standard input")
    return "\n\n".join(parts)
