"""How MCP servers are reached: the entries of an `mcpServers` object, as other agents have it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from codemill.errors import UsageError

VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
CALL_SECONDS = 120.0


@dataclass(frozen=True)
class McpSettings:
    """One server: command, args, env and cwd start it, or url and headers reach it. timeout: seconds for one call.

    is_trusted: its tools are called without asking.
    """

    name: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = CALL_SECONDS
    is_trusted: bool = False


def read_settings(servers: Mapping[str, Any]) -> list[McpSettings]:
    """The servers of an `mcpServers` object, but for those with `"disabled": true`. Raises UsageError naming the one
    that is wrong. `${NAME}` stands for a variable of the environment."""
    return [_read(name, entry) for name, entry in servers.items() if not _is_disabled(entry)]


def _is_disabled(entry: Any) -> bool:
    return isinstance(entry, Mapping) and entry.get("disabled") is True


def _read(name: str, entry: Any) -> McpSettings:
    if not isinstance(entry, Mapping):
        raise UsageError(f"mcpServers.{name}: must be an object with command or url")
    command, url = _text(name, entry, "command"), _text(name, entry, "url") or _text(name, entry, "httpUrl")
    if bool(command) == bool(url):
        raise UsageError(f"mcpServers.{name}: give either command or url")
    if entry.get("type") == "sse":
        raise UsageError(f"mcpServers.{name}: servers of type sse are not supported; most have a url for http, too")
    if url and not re.match(r"https?://", url):
        raise UsageError(f"mcpServers.{name}.url: must begin with http:// or https://")
    timeout = entry.get("timeout", CALL_SECONDS * 1000)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
        raise UsageError(f"mcpServers.{name}.timeout: must be a number of milliseconds above 0")
    return McpSettings(
        name,
        command,
        _list(name, entry),
        _texts(name, entry, "env"),
        _text(name, entry, "cwd") or None,
        url,
        _texts(name, entry, "headers"),
        timeout / 1000,
        entry.get("trust") is True,
    )


def _text(name: str, entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str):
        raise UsageError(f"mcpServers.{name}.{key}: must be a text")
    return _expand(name, value)


def _list(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    value = entry.get("args", [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UsageError(f"mcpServers.{name}.args: must be a list of texts")
    return tuple(_expand(name, each) for each in value)


def _texts(name: str, entry: Mapping[str, Any], key: str) -> dict[str, str]:
    value = entry.get(key, {})
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value.values()):
        raise UsageError(f"mcpServers.{name}.{key}: must be an object of texts")
    return {variable: _expand(name, each) for variable, each in value.items()}


def _expand(name: str, text: str) -> str:
    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise UsageError(f"mcpServers.{name}: the environment has no {match[1]}")
        return found

    return VARIABLE.sub(value, text)
