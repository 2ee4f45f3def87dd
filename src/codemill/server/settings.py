"""Settings of the server: where it listens, who may use it, and its limits. No torch here."""

import ipaddress
from dataclasses import dataclass
from typing import Literal

from codemill.errors import UsageError

LogFormat = Literal["text", "json"]
LOG_FORMATS: tuple[LogFormat, ...] = ("text", "json")
_POSITIVE = (
    *("max_body_bytes", "body_seconds", "max_header_bytes", "header_seconds", "idle_seconds", "write_seconds"),
    *("max_connections", "heartbeat_seconds"),
)


@dataclass(frozen=True)
class ServerSettings:
    """How the server serves. Times in seconds.

    api_keys: a request needs one of them; none are asked for if there are none.
    cors_origins: web pages that may use the server, as `https://host:port`; "*" for all.
    allowed_hosts: names under which the server may be reached without a key, besides those of this machine.
    max_body_bytes, body_seconds: of a request's body, and the time it may take to arrive.
    max_header_bytes, header_seconds: the same for its header.
    idle_seconds: how long a connection may stay open without a request.
    write_seconds: how long a client may leave its answer unread.
    max_connections: at the same time.
    heartbeat_seconds: a stream says something at least that often.
    max_request_seconds: a request that takes longer ends with what it has; None for no limit.
    shutdown_seconds: what running requests are given to finish once the server is told to end.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = 32 << 20
    body_seconds: float = 60.0
    max_header_bytes: int = 64 << 10
    header_seconds: float = 10.0
    idle_seconds: float = 75.0
    write_seconds: float = 60.0
    max_connections: int = 1000
    heartbeat_seconds: float = 15.0
    max_request_seconds: float | None = None
    shutdown_seconds: float = 30.0
    log_format: LogFormat = "text"
    log_prompts: bool = False

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} = {getattr(self, name)}: must be above 0")
        if self.max_request_seconds is not None and not self.max_request_seconds > 0:
            raise UsageError(f"max_request_seconds = {self.max_request_seconds}: must be above 0")
        if not self.shutdown_seconds >= 0:
            raise UsageError(f"shutdown_seconds = {self.shutdown_seconds}: must be at least 0")
        if self.log_format not in LOG_FORMATS:
            raise UsageError(f"log_format = {self.log_format!r}: choose {', '.join(LOG_FORMATS)}")

    @property
    def needs_key(self) -> bool:
        """Whether a request needs an API key."""
        return bool(self.api_keys)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
