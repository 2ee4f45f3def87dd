"""Runs the application: listens, serves, and ends in order."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn

from codemill.server.asgi import App
from codemill.server.http_protocol import guarded_protocol
from codemill.server.listening import raise_file_limit, refused
from codemill.server.registry import Registry
from codemill.server.settings import ServerSettings

GRACE_SECONDS = 5.0  # for answers that were cut short to reach their clients, and for engines to close
SIGNALS = (signal.SIGINT, signal.SIGTERM)
log = logging.getLogger("codemill.server")


def run_server(
    app: App,
    registry: Registry,
    settings: ServerSettings,
    sockets: Sequence[socket.socket],
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Load the first model, serve on bound sockets until SIGINT or SIGTERM comes, then end in order.

    At that signal no connection is accepted any more, and running requests have `shutdown_seconds` to finish; those
    left are aborted, and end with what they have. A second one ends the process at once, with status 130. on_ready:
    called once the server accepts connections. Raises CodemillError if the first model cannot be loaded or the system
    does not let it listen.
    """
    raise_file_limit()
    _run(_serve(app, registry, settings, sockets, on_ready))


async def _serve(
    app: App,
    registry: Registry,
    settings: ServerSettings,
    sockets: Sequence[socket.socket],
    on_ready: Callable[[], None],
) -> None:
    server = Server(app, registry, settings, on_ready)
    with server.watch_signals():
        await registry.start()
        try:
            await server.serve(list(sockets))
        finally:
            await _close(registry)


class Server(uvicorn.Server):
    """uvicorn's server, with the end of requests that outlast the shutdown, and signals of our own."""

    def __init__(
        self, app: App, registry: Registry, settings: ServerSettings, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(uvicorn_config(app, settings))
        self._registry = registry
        self._settings = settings
        self._on_ready = on_ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: uvicorn would raise the signal again once all is done, and the status would be that of a failure."""
        yield

    @contextmanager
    def watch_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the server as long as the context lasts."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._take_signal)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # another program began to listen there while the model was loading
            raise refused(error, self._settings.host, self._settings.port) from error
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("shutting down; requests that run: %d", len(self.server_state.tasks))
        abort = asyncio.create_task(self._abort_late())
        try:
            await super().shutdown(sockets)
        finally:
            abort.cancel()
            with suppress(asyncio.CancelledError):
                await abort

    async def _abort_late(self) -> None:
        await asyncio.sleep(self._settings.shutdown_seconds)
        if self.server_state.tasks:
            log.warning("requests that are cut short: %d", len(self.server_state.tasks))
            await self._registry.close(0.0)

    def _take_signal(self) -> None:
        if not self.started:
            end_process(0)  # nothing has been promised to anybody, and a model that is loading cannot be stopped
        if self.should_exit:
            end_process(130)
        self.should_exit = True


def uvicorn_config(app: App, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn is to run: our protocol, and no logging of its own."""
    return uvicorn.Config(
        app,
        http=guarded_protocol(settings),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(settings.idle_seconds),
        timeout_graceful_shutdown=int(settings.shutdown_seconds + GRACE_SECONDS),
    )


def end_process(status: int) -> None:
    """End at once. Nothing is waited for: a thread that loads a model would keep an orderly end waiting."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


async def _close(registry: Registry) -> None:
    """Close what is left. An engine in the midst of a long step, or a model that is loading, is not waited for."""
    try:
        async with asyncio.timeout(GRACE_SECONDS):
            await registry.close(0.0)
    except TimeoutError:
        log.warning("an engine did not stop within %g s: the process ends without it", GRACE_SECONDS)
        end_process(0)
    if registry.is_loading:
        end_process(0)


def _run(main: Coroutine[Any, Any, None]) -> None:
    """Run it in uvloop's event loop where that is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
