"""A real server on 127.0.0.1 whose model is a script."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'codemill[serve]'")

import uvicorn

from codemill.engine.scripted import Script, ScriptedEngine
from codemill.server.app import create_app
from codemill.server.registry import Registry
from codemill.server.settings import ServerSettings

Serve = Callable[..., httpx.Client]


class LiveServer:
    """The application in a thread, until `stop`."""

    def __init__(self, registry: Registry, settings: ServerSettings) -> None:
        config = uvicorn.Config(
            create_app(registry, settings), host="127.0.0.1", port=0, log_level="warning", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.005)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(script, **options)` -> a client of a server whose model says what `script(prompt)` returns.

    `settings` are those of the server, `registry` a whole one instead of the script; all else is `ScriptedEngine`'s.
    """
    servers: list[LiveServer] = []

    def start(
        script: Script = lambda prompt: "Hello!",
        *,
        name: str = "scripted",
        settings: ServerSettings | None = None,
        registry: Registry | None = None,
        **options: Any,
    ) -> httpx.Client:
        registry = registry or Registry.of(ScriptedEngine(script, **options), name)
        server = LiveServer(registry, settings or ServerSettings())
        servers.append(server)
        return httpx.Client(base_url=server.url, timeout=30)

    yield start
    for server in servers:
        server.stop()
