"""The sockets that the server listens on."""

import errno
import os
import socket
import sys

from codemill.errors import CodemillError, UsageError

# A client that has vanished, without a word, is noticed after about so many seconds.
VANISHED_SECONDS = 60


def open_sockets(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to the addresses of `host`, which do not listen yet; port 0 takes one that is free.

    A name may have an IPv4 and an IPv6 address; only the first has to be free. Raises UsageError for a host or port
    that there is not, CodemillError if the port is in use or the system refuses.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: choose 1 to 65535, or 0 for one that is free")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no name"
        raise UsageError(f"--host {host}: {reason}; give an address of this machine, such as 127.0.0.1") from None
    families = {entry[0]: entry[4] for entry in reversed(found)}
    addresses = sorted(families.items(), key=lambda item: item[0] != socket.AF_INET)
    sockets: list[socket.socket] = []
    for family, address in addresses:
        try:
            sockets.append(_bind(family, (str(address[0]), sockets[0].getsockname()[1] if sockets else port)))
        except OSError as error:
            if not sockets:
                raise refused(error, host, port) from None
    return sockets


def url_of(listening: socket.socket, host: str) -> str:
    """The address that a client on this machine may use."""
    address, port = listening.getsockname()[:2]
    is_any = address in ("0.0.0.0", "::")
    name = "127.0.0.1" if is_any and listening.family == socket.AF_INET else "::1" if is_any else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def raise_file_limit() -> None:
    """Allow as many open files as the system lets this process have: each connection is one."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _bind(family: int, address: tuple[str, int]) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two servers have one port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        _watch_peers(listening)
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


def _watch_peers(listening: socket.socket) -> None:
    """Options that the connections inherit."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": VANISHED_SECONDS // 2,
        "TCP_KEEPINTVL": VANISHED_SECONDS // 6,
        "TCP_USER_TIMEOUT": 1000 * VANISHED_SECONDS,
    }
    for name, value in options.items():
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def refused(error: OSError, host: str, port: int) -> CodemillError:
    """What the user is told when the system does not let the server listen."""
    return CodemillError(_describe(error, host, port))


def _describe(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: end what listens there, or choose another --port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"this user may not listen on port {port} of {host}: choose a --port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine: choose another --host, such as 127.0.0.1"
    return f"cannot listen on port {port} of {host}: {error.strerror}"
