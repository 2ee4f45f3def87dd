"""Connections to servers of the public network, and to no others: not to this machine, nor to what is beside it."""

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Callable

from codemill.agent.tool import ToolError

IsAllowed = Callable[[str], bool]


def is_public(address: str) -> bool:
    """Whether an IP address can be reached by everybody."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    if mapped is not None:
        found = mapped
    embedded = isinstance(found, ipaddress.IPv6Address) and found in ipaddress.ip_network("64:ff9b::/96")
    if embedded:
        found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return found.is_global and not (found.is_multicast or found.is_reserved)


def resolve(host: str, port: int, is_allowed: IsAllowed = is_public) -> str:
    """An address of a host. Raises ToolError if it has none, or any that is not allowed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ToolError(f"{host} cannot be found: {getattr(error, 'strerror', None) or error}") from None
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_allowed(address):
            raise ToolError(f"{host} is {address}, which is no address of the public network: it is not fetched")
    return addresses[0]


def connect(scheme: str, host: str, port: int, timeout: float, is_allowed: IsAllowed) -> http.client.HTTPConnection:
    """A connection to the address that was checked: the name is not looked up a second time."""
    address = resolve(host, port, is_allowed)
    stream = socket.create_connection((address, port), timeout)
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        secured = ssl.create_default_context().wrap_socket(stream, server_hostname=host) if scheme == "https" else None
    except BaseException:
        stream.close()
        raise
    connection.sock = secured or stream
    return connection
