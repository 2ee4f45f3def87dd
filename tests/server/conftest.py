"""A real server on 127.0.0.1 whose model is a script."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'codemill[serve]'")

from codemill.engine.scripted import Script, ScriptedEngine
from codemill.server.registry import Registry
from codemill.server.settings import ServerSettings
from server.live import LiveServer

Serve = Callable[..., httpx.Client]


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
