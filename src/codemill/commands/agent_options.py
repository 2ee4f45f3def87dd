"""What `codemill agent` and its workflows share: which model works, and what Ctrl-C does."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.commands import options
from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill.agent.approval import Mode
    from codemill.agent.budget import Budget
    from codemill.agent.model import Model
    from codemill.agent.workbench import AgentOptions

TOO_SMALL = (
    "the embedded model is far too small to work as an agent: name one with --model SPEC or --endpoint URL "
    "(this one shows only how it would look)"
)
Endpoint = Annotated[
    str | None,
    typer.Option(metavar="URL", envvar="OPENAI_BASE_URL", help="An OpenAI-compatible server; --model is its name."),
]
ApiKey = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="Of the server.")]


def choose_model(
    spec: str | None,
    endpoint: str | None,
    api_key: str | None = None,
    temperature: float | None = None,
    max_model_len: int | None = None,
    quantization: str | None = None,
    threads: int | None = None,
    prefix_cache_dir: str | None = None,
) -> "Model":
    """A server's model, or our own, which is loaded when it is first asked. Raises UsageError for a wrong name."""
    return _endpoint(endpoint, spec, api_key, temperature, max_model_len) or _local(
        spec, temperature, quantization, max_model_len, threads, prefix_cache_dir
    )


@contextmanager
def interruptible(cancel: threading.Event) -> Iterator[None]:
    """Ctrl-C, or SIGTERM, sets `cancel`, so that a step is ended and what it did is kept; a second one ends the
    process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(*_: object) -> None:
        cancel.set()
        restore()

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


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


def project(
    directory: Path, budget: "Budget | None" = None, network: bool = False, mode: "Mode" = "auto-edit"
) -> "AgentOptions":
    """What an agent needs to know of a folder. Raises UsageError if there is none, or its configuration is wrong."""
    from codemill.agent.budget import Budget
    from codemill.agent.configuration import read_configuration
    from codemill.agent.workbench import AgentOptions

    if not directory.is_dir():
        raise UsageError(f"--directory {directory}: no such folder")
    root = directory.resolve()
    return AgentOptions(
        root, mode=mode, budget=budget or Budget(), network=network, configuration=read_configuration(root)
    )


@contextmanager
def more_tools(
    chosen: "AgentOptions", with_web: bool = False, is_interactive: bool = False
) -> Iterator["AgentOptions"]:
    """The options with the tools of the MCP servers that are configured, which run meanwhile, and web_fetch if wanted.

    Raises UsageError for an entry of a server that is wrong.
    """
    tools = [*chosen.more_tools]
    if with_web:
        from codemill.agent.tools.web_fetch import WebFetchTool

        tools.append(WebFetchTool())
    if not chosen.configuration.mcp_servers:
        yield replace(chosen, more_tools=tools)
        return
    from codemill.agent.mcp_client import PATIENCE, START_SECONDS, McpServers
    from codemill.agent.mcp_settings import read_settings

    settings = read_settings(chosen.configuration.mcp_servers)
    with McpServers(settings, PATIENCE if is_interactive else START_SECONDS) as servers:
        yield replace(chosen, more_tools=tools, late_tools=servers)
