"""Who may use the server: API keys, and which web pages may reach it from a browser."""

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from codemill.errors import CodemillError, UsageError
from codemill.server.asgi import App, Message, Receive, Scope, Send, header
from codemill.server.body import IncomingBody, refuse
from codemill.server.errors import ApiError
from codemill.server.settings import ServerSettings

# Without a key: whether the server is alive, and the web page, which asks the user for the key.
OPEN_PATHS = frozenset({"/", "/health", "/favicon.ico"})
OPEN_PREFIXES = ("/static/",)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Names that no stranger can make point here: of this machine, of the local network, and of containers.
LOCAL_ENDINGS = (".localhost", ".local", ".internal")
EXPOSED_HEADERS = b"x-request-id, retry-after"


class Access:
    """ASGI middleware that answers whom it does not let through, and adds the CORS headers of pages that may read.

    A server without keys is open to whoever reaches it, which includes each web page in a browser on this machine. So
    it takes no request that changes something from a page of another origin (CSRF), and none at all under a name that
    may be anybody's (DNS rebinding), unless they are listed. With keys, the key decides.
    """

    def __init__(self, app: App, settings: ServerSettings) -> None:
        self._app = app
        self._keys = ApiKeys(settings.api_keys)
        self._origins = frozenset(settings.cors_origins)
        self._hosts = frozenset(name.lower() for name in (*settings.allowed_hosts, socket.gethostname()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = header(scope, b"origin")
        if origin is not None and self._may_read(origin):
            if is_preflight(scope):
                await _answer_preflight(scope, send, origin)
                return
            send = _with_cors(send, origin)
        refusal = self._refusal(scope, origin)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await refuse(scope, IncomingBody(scope, receive), send, refusal)

    def _refusal(self, scope: Scope, origin: bytes | None) -> ApiError | None:
        if not self._keys:
            return self._foreign_host(scope) or self._foreign_origin(scope, origin)
        if is_open(scope) or self._keys.accept(scope):
            return None
        return ApiError(
            401,
            "no valid API key: send the server's key as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )

    def _foreign_host(self, scope: Scope) -> ApiError | None:
        host = header(scope, b"host")
        if host is None:
            return None
        name = host_name(host.decode("latin-1"))
        if is_local_name(name) or name in self._hosts or "*" in self._hosts:
            return None
        return _forbidden(f"the server is not called {name[:100]!r}: start it with --allowed-host {name[:100]}")

    def _foreign_origin(self, scope: Scope, origin: bytes | None) -> ApiError | None:
        if origin is None or scope["method"] in SAFE_METHODS or self._may_read(origin):
            return None
        if origin.partition(b"://")[2] == header(scope, b"host"):  # the server's own page
            return None
        text = origin.decode("latin-1")[:100]
        return _forbidden(f"web pages of {text} may not use this server: start it with --cors {text}")

    def _may_read(self, origin: bytes) -> bool:
        return "*" in self._origins or origin.decode("latin-1") in self._origins


class ApiKeys:
    """The keys of which a request needs one."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, scope: Scope) -> bool:
        """Whether a request carries one of them. Takes as long for a wrong key as for a right one."""
        is_known = False
        for name, value in scope["headers"]:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                is_known |= self._is_known(value[7:].strip())
            elif name == b"x-api-key":
                is_known |= self._is_known(value.strip())
        return is_known

    def _is_known(self, key: bytes) -> bool:
        digest, is_known = _digest(key), False
        for each in self._digests:
            is_known |= hmac.compare_digest(each, digest)
        return is_known


def read_keys(path: str | Path) -> list[str]:
    """The keys of a file: one a line; empty lines and those that begin with # do not count.

    Raises CodemillError if it cannot be read, UsageError if it has none.
    """
    try:
        text = Path(path).expanduser().read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise CodemillError(f"{path}: cannot read the API keys: {reason}") from error
    keys = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise UsageError(f"{path}: no API key in it: put one on each line")
    return keys


def check_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """The keys, each once. Raises UsageError for one that no header can carry."""
    for key in keys:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError("an API key is empty or has spaces or other than ASCII characters: choose another one")
    return tuple(dict.fromkeys(keys))


def is_open(scope: Scope) -> bool:
    """Whether a request needs no key."""
    path = scope["path"]
    return scope["method"] in ("GET", "HEAD") and (path in OPEN_PATHS or path.startswith(OPEN_PREFIXES))


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks if it may send a request."""
    return scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None


@lru_cache(maxsize=256)
def host_name(host: str) -> str:
    """Of a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


@lru_cache(maxsize=256)
def is_local_name(name: str) -> bool:
    """Whether a name cannot be one that a stranger's DNS server answers for: an address, or a name of no domain."""
    if "." not in name and ":" not in name:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.endswith(LOCAL_ENDINGS)
    return True


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _forbidden(message: str) -> ApiError:
    return ApiError(403, message, code="forbidden")


async def _answer_preflight(scope: Scope, send: Send, origin: bytes) -> None:
    headers = [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-allow-headers", header(scope, b"access-control-request-headers") or b"*"),
        (b"access-control-max-age", b"600"),
        (b"vary", b"origin, access-control-request-headers"),
    ]
    if header(scope, b"access-control-request-private-network") is not None:
        headers.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _with_cors(send: Send, origin: bytes) -> Send:
    """`send`, with what lets pages of an origin read the answer."""
    added = [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", EXPOSED_HEADERS),
        (b"vary", b"origin"),
    ]

    async def send_with_cors(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return send_with_cors
