"""`codemill agent`: the coding agent, in the terminal or without one."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codemill.commands import epilog, options
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
TOO_SMALL = (
    "the embedded model is far too small to work as an agent: name one with --model SPEC or --endpoint URL "
    "(this one shows only how it would look)"
)


def register(app: typer.Typer) -> None:
    # A group: the workflows are verbs of their own.
    group = typer.Typer(help=agent.__doc__, epilog=epilog(EXAMPLES), rich_markup_mode=None)
    group.callback(invoke_without_command=True)(agent)
    app.add_typer(group, name="agent")


def agent(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Work on this and end; standard input is added to it.")
    ] = None,
    model: options.Model = None,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="OPENAI_BASE_URL", help="An OpenAI-compatible server; --model is its name."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="Of the server.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="plan, default, auto-edit or yolo; with -p auto-edit.")] = None,
    directory: Annotated[Path, typer.Option("--directory", "-C", help="The workspace.")] = Path(),
    resume_last: Annotated[bool, typer.Option("--continue", help="Go on with the latest session.")] = False,
    resume: Annotated[str | None, typer.Option(metavar="ID", help="Go on with a session.")] = None,
    fork: Annotated[bool, typer.Option("--fork", help="Leave that session as it is, and go on in a copy.")] = False,
    network: Annotated[bool, typer.Option("--network", help="Let commands reach the network.")] = False,
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
    asked = _endpoint(endpoint, model, api_key, temperature, max_model_len) or _local(
        model, temperature, quantization, max_model_len, threads, prefix_cache_dir
    )
    store = SessionStore(None, root)
    session = _session(store, resume_last, resume, fork, asked)
    if prompt is None and sys.stdin.isatty() and sys.stdout.isatty():
        from codemill.agent.terminal import run_terminal

        raise typer.Exit(run_terminal(chosen, asked, session, store))
    raise typer.Exit(_run_once(chosen, asked, session, _task(prompt), output_format))


def _run_once(chosen: "AgentOptions", model: "Model", session: "Session", task: str, output_format: str) -> int:
    """Work on one task -> the exit status."""
    import signal

    from codemill.agent.approval import NobodyToAsk
    from codemill.agent.headless import HeadlessOutput
    from codemill.agent.workbench import Workbench

    output = HeadlessOutput(output_format)
    with Workbench(chosen, model, session, NobodyToAsk(), output.listener) as workbench:
        before = signal.getsignal(signal.SIGINT)

        def stop(*_: object) -> None:
            """End the step, so that the session stays whole; a second Ctrl-C ends the process."""
            workbench.cancel.set()
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, stop)
        try:
            outcome = workbench.agent.run(task)
        finally:
            signal.signal(signal.SIGINT, before)
    return output.finish(outcome, session.id)


def _mode(mode: str | None, prompt: str | None) -> Any:
    """Raises UsageError later if there is no such mode."""
    return mode or ("default" if prompt is None else "auto-edit")


def _endpoint(
    url: str | None, name: str | None, api_key: str | None, temperature: float | None, context: int | None
) -> "Model | None":
    if url is None:
        return None
    from codemill.agent.endpoint_model import Endpoint, EndpointModel

    parameters = {} if temperature is None else {"temperature": temperature}
    return EndpointModel(Endpoint(url, name or "", api_key, context, parameters))


def _local(
    spec: str | None,
    temperature: float | None,
    quantization: str | None,
    max_model_len: int | None,
    threads: int | None,
    prefix_cache_dir: str | None,
) -> "Model":
    from codemill.agent.local_model import LocalModel
    from codemill.spec import resolve

    resolve(spec)  # a wrong one is told before anything is typed
    if spec is None:
        print(f"codemill: {TOO_SMALL}", file=sys.stderr)
    return LocalModel(
        lambda: options.load_llm(
            spec, "auto", "auto", max_model_len, threads, None, prefix_cache_dir, quantization, "auto"
        ),
        spec or "embedded",
        temperature,
    )


def _session(store: "SessionStore", resume_last: bool, resume: str | None, fork: bool, model: "Model") -> "Session":
    if resume is None and not resume_last:
        if fork:
            raise UsageError("--fork needs --continue or --resume ID: it says what to copy")
        return store.create(cwd=os.getcwd())
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
