"""The real server, with a model whose words a script decides."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from codemill.engine.scripted import Script, ScriptedEngine
from codemill.server.registry import Registry
from codemill.server.settings import ServerSettings
from server.live import LiveServer

MODEL = "qwen3-coder"


@contextmanager
def serve(
    script: Script, settings: ServerSettings | None = None, *, strict_names: bool = False, **engine_options: Any
) -> Iterator[str]:
    """Gives the server's address, such as http://127.0.0.1:40123."""
    registry = Registry.of(ScriptedEngine(script, **engine_options), MODEL, strict_names=strict_names)
    live = LiveServer(registry, settings or ServerSettings())
    try:
        yield live.url
    finally:
        live.stop()
