"""MCP servers, whose tools the agent may use: over stdio and over streamable HTTP.

    with McpServers(read_settings(configuration.mcp_servers)) as servers:
        options = AgentOptions(root, late_tools=servers)

They start in the background, once an agent has its workbench, and its first request waits for them a little. They run
outside the sandbox, with the rights of the user. A server that does not work is told of, and left out.
"""

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

from codemill.agent.events import Listener, Notice
from codemill.agent.mcp_settings import McpSettings
from codemill.agent.mcp_tool import McpTool
from codemill.agent.stops import Interrupted
from codemill.agent.tool import Tool, ToolError
from codemill.agent.workflows.visible import visible
from codemill.errors import CodemillError

START_SECONDS = 30.0
PATIENCE = 5.0  # seconds that somebody who types waits for them
TELL_SECONDS = 1.0  # from which on a wait is told of
CLOSE_SECONDS = 10.0
TICK = 0.05  # seconds in which a cancellation is seen
MAX_PAGES = 20  # of a list of tools
MISSING = "the package mcp is not installed: pip install 'codemill[agent]'"


class McpServers:
    """A context in which the servers run. patience: seconds that the first request waits for them, and no later one.

    tools: of all that have answered, as far as `gather` has seen.
    """

    def __init__(
        self, settings: Sequence[McpSettings], patience: float = START_SECONDS, start_seconds: float = START_SECONDS
    ) -> None:
        self.tools: list[Tool] = []
        self._patience = min(patience, start_seconds)
        self._start_seconds = start_seconds
        self._began = 0.0
        self._servers = [_Server(each) for each in settings]
        self._starting = list(self._servers)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is None or self._thread is None:
            return
        with suppress(RuntimeError):  # the loop has ended, since no server runs
            for server in self._servers:
                self._loop.call_soon_threadsafe(server.stop)
        self._thread.join(CLOSE_SECONDS)
        self._loop = None

    def start(self) -> None:
        """Start them, and wait for nothing."""
        if not self._servers or self._thread is not None:
            return
        self._began = time.monotonic()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, args=(self._loop,), name="mcp", daemon=True)
        self._thread.start()

    def gather(self, listen: Listener, cancel: threading.Event) -> Sequence[Tool]:
        """The tools that there are now; the first time it waits for the others. Raises Interrupted."""
        self.start()
        deadline, self._patience = time.monotonic() + self._patience, 0.0
        self._wait(deadline, listen, cancel)
        is_late = time.monotonic() - self._began >= self._start_seconds
        for server in self._starting[:]:
            if server.ready.done() or is_late:
                self._starting.remove(server)
                self._take(server, listen)
            else:
                listen(Notice(visible(f"the MCP server {server.settings.name} does not answer yet: go on without it")))
        return self.tools

    def _wait(self, deadline: float, listen: Listener, cancel: threading.Event) -> None:
        futures, told = [server.ready for server in self._starting], time.monotonic() + TELL_SECONDS
        while wait(futures, TICK).not_done and time.monotonic() < deadline:
            if cancel.is_set():
                raise Interrupted("stopped")
            if time.monotonic() > told:
                names = ", ".join(server.settings.name for server in self._starting if not server.ready.done())
                listen(Notice(visible(f"waiting for MCP servers: {names}")))
                told = float("inf")

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread: until all servers have ended."""
        asyncio.set_event_loop(loop)
        try:
            import mcp  # noqa: F401 - 1 s, so only where it is needed
        except ImportError:
            for server in self._servers:
                server.ready.set_exception(CodemillError(MISSING))
            loop.close()
            return
        with suppress(Exception):
            loop.run_until_complete(asyncio.gather(*(server.run() for server in self._servers), return_exceptions=True))
        with suppress(Exception):
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    def _take(self, server: "_Server", listen: Listener) -> None:
        """One that has answered, or has had time enough."""
        if not server.ready.done():
            self._leave_out(server, f"it has not answered within {self._start_seconds:g} s", listen)
            return
        try:
            tools = server.ready.result()
        except Exception as error:  # noqa: BLE001 - whatever a server or its library does, the agent goes on
            self._leave_out(server, _reason(error), listen)
        else:
            self._add(server, tools)

    def _leave_out(self, server: "_Server", reason: str, listen: Listener) -> None:
        assert self._loop is not None
        words = server.last_words()
        text = f"the MCP server {server.settings.name} is left out: {reason}{words and f' ({words})'}"
        listen(Notice(visible(text)))
        with suppress(RuntimeError):  # the loop has ended, since no server runs
            self._loop.call_soon_threadsafe(server.give_up)

    def _add(self, server: "_Server", tools: Sequence[Any]) -> None:
        settings = server.settings
        for tool in tools:

            def call(name: str, arguments: Mapping[str, Any], cancel: threading.Event, to: "_Server" = server) -> Any:
                return self._call(to, name, arguments, cancel)

            taken = [each.spec.name for each in self.tools]
            self.tools.append(McpTool(settings.name, tool, call, settings.is_trusted, taken))

    def _call(self, server: "_Server", name: str, arguments: Mapping[str, Any], cancel: threading.Event) -> Any:
        """Raises ToolError, Interrupted."""
        label = f"the MCP server {server.settings.name}"
        if self._loop is None or not server.is_running:
            raise ToolError(f"{label} has ended; its tools cannot be used any more")
        future = asyncio.run_coroutine_threadsafe(server.call(name, arguments), self._loop)
        deadline = time.monotonic() + server.settings.timeout
        while not wait([future], TICK).done:
            if cancel.is_set():
                future.cancel()
                raise Interrupted("stopped")
            if time.monotonic() > deadline:
                future.cancel()
                raise ToolError(f"{label} has not answered within {server.settings.timeout:g} s")
        try:
            return future.result()
        except Exception as error:  # noqa: BLE001 - as at the start
            raise ToolError(f"{label}: {_reason(error)}") from None


class _Server:
    """One server. All but `ready`, `is_running`, `settings` and `last_words` belong to the loop's thread."""

    def __init__(self, settings: McpSettings) -> None:
        self.settings = settings
        self.ready: Future[list[Any]] = Future()
        self.is_running = False
        self._client: Any = None
        self._scope: Any = None
        self._stopping = asyncio.Event()
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - lives as long as the server

    async def run(self) -> None:
        """From the start to the end; what goes wrong at the start is the outcome of `ready`."""
        import anyio

        try:
            with anyio.CancelScope() as self._scope:
                async with self._connected() as self._client:
                    tools = await self._tools()
                    self.is_running = True
                    self.ready.set_result(tools)
                    await self._stopping.wait()
        except Exception as error:  # noqa: BLE001 - also groups of them; told by `ready`
            if not self.ready.done():
                self.ready.set_exception(error)
        finally:
            self.is_running = False
            if not self.ready.done():
                self.ready.set_exception(ConnectionError("it was stopped"))

    def stop(self) -> None:
        """End it as the protocol wants it; one that has not started is given up."""
        if not self.is_running:
            self.give_up()
        self._stopping.set()

    def give_up(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        return await self._client.call_tool(name, dict(arguments), read_timeout_seconds=self.settings.timeout)

    def last_words(self) -> str:
        """The last line that it wrote to standard error."""
        with suppress(OSError, ValueError):
            self._errors.seek(0)
            lines = [line.strip() for line in self._errors.read()[-2000:].splitlines() if line.strip()]
            return lines[-1][:200] if lines else ""
        return ""

    async def _tools(self) -> list[Any]:
        page = await self._client.list_tools()
        tools = list(page.tools)
        for _ in range(MAX_PAGES):
            if not page.next_cursor:
                break
            page = await self._client.list_tools(cursor=page.next_cursor)
            tools += page.tools
        return tools

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        from mcp import Client
        from mcp.client.stdio import StdioServerParameters, stdio_client
        from mcp.client.streamable_http import streamable_http_client

        settings = self.settings
        if settings.command:
            started = StdioServerParameters(
                command=settings.command, args=list(settings.args), env=dict(settings.env), cwd=settings.cwd
            )
            async with Client(stdio_client(started, errlog=self._errors)) as client:
                yield client
            return
        from httpx2 import AsyncClient, Timeout

        async with (
            AsyncClient(headers=dict(settings.headers), timeout=Timeout(30.0, read=settings.timeout)) as http,
            Client(streamable_http_client(settings.url, http_client=http)) as client,
        ):
            yield client


def _reason(error: BaseException) -> str:
    """In one line; of a group, what its first member says."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    if isinstance(error, FileNotFoundError):
        return f"there is no program {error.filename or os.strerror(error.errno or 2)}"
    return " ".join(str(error).split())[:300] or type(error).__name__
