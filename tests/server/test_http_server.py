"""Clients that hold connections without using them, and the end of the server."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.server import body
from codemill.server.listening import open_sockets, raise_file_limit, url_of
from server.live_server import Demo, Live, NoRegistry, read_all, request, running, status_of, wait_until

HEAD = b"POST /echo HTTP/1.1\r\nhost: 127.0.0.1\r\n"


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    limits = {"header_seconds": 0.4, "body_seconds": 0.4, "write_seconds": 0.4, "max_header_bytes": 4096}
    with pytest.MonkeyPatch.context() as patch, running(Demo(), max_body_bytes=100_000, **limits) as live:
        patch.setattr(body, "LINGER_SECONDS", 1.0)
        yield live


def trickle(client: socket.socket, data: bytes, gap: float = 0.05) -> float:
    """Send byte by byte until the server closes the connection -> the seconds it took."""
    begin = time.monotonic()
    with contextlib.suppress(OSError):
        for byte in data:
            client.sendall(bytes([byte]))
            time.sleep(gap)
    return time.monotonic() - begin


def is_refused(live: Live) -> bool:
    try:
        live.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def read_answer(client: socket.socket) -> bytes:
    """One answer of a connection that stays open."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(4096)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(
        next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split(b":")[1]
    )
    while len(body) < length:
        body += client.recv(4096)
    return head + b"\r\n\r\n" + body


def test_a_request_is_answered(live: Live) -> None:
    answer = live.get()
    assert status_of(answer) == 200
    assert answer.endswith(b"hello")
    assert b"x-request-id: req-" in answer
    assert b"server:" not in answer


def test_the_log_has_the_client_that_a_proxy_names(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "codemill.server")
    with live.connect() as client:
        client.sendall(request("GET", "/", "x-forwarded-for: 203.0.113.9\r\nconnection: close\r\n"))
        read_all(client)
    live.get()
    clients = [record.record.client for record in caplog.records if hasattr(record, "record")]
    assert clients[0] == "203.0.113.9"
    assert clients[1].startswith("127.0.0.1:")


def test_a_header_that_trickles_in_is_408(live: Live) -> None:
    with live.connect() as client:
        begin = time.monotonic()
        sender = threading.Thread(target=trickle, args=(client, HEAD * 10))
        sender.start()
        answer = read_all(client)
        assert time.monotonic() - begin < 2
        sender.join()
    assert status_of(answer) == 408


def test_a_header_that_trickles_in_on_a_used_connection_is_408(live: Live) -> None:
    with live.connect() as client:
        client.sendall(request("GET", "/"))
        assert read_answer(client).endswith(b"hello")
        sender = threading.Thread(target=trickle, args=(client, HEAD * 10))
        sender.start()
        assert status_of(read_all(client)) == 408
        sender.join()


def test_a_connection_without_a_request_is_closed(live: Live) -> None:
    with live.connect() as client:
        assert read_all(client) == b""


def test_a_connection_serves_many_requests(live: Live) -> None:
    with live.connect() as client:
        for number in range(5):
            body = b"x" * (number + 1)
            client.sendall(request("POST", "/echo", f"content-length: {len(body)}\r\n", body))
            assert read_answer(client).endswith(b"\r\n\r\n" + body)
            time.sleep(0.15)  # longer in all than a header may take


def test_a_header_in_two_parts_is_served(live: Live) -> None:
    with live.connect() as client:
        data = request("POST", "/echo", "content-length: 3\r\n", b"abc")
        client.sendall(data[:20])
        time.sleep(0.1)
        client.sendall(data[20:])
        assert read_answer(client).endswith(b"abc")
        time.sleep(0.5)  # the timer of the header does not strike after it
        client.sendall(data)
        assert read_answer(client).endswith(b"abc")


@pytest.mark.parametrize("headers", ["x: " + "y" * 5000 + "\r\n", "x: y\r\n" * 2000, "x" * 300_000])
def test_a_header_too_large_is_431(live: Live, headers: str) -> None:
    with live.connect() as client:
        with contextlib.suppress(OSError):
            client.sendall(request("GET", "/", headers))
        answer = read_all(client)
    assert answer == b"" or status_of(answer) == 431  # closing may have reset the connection before it was read
    if len(headers) < 20_000:
        assert answer


def test_a_header_just_small_enough_is_served_with_a_large_body(live: Live) -> None:
    body = b"z" * 90_000
    with live.connect() as client:
        client.sendall(request("POST", "/echo", f"x: {'y' * 3900}\r\ncontent-length: {len(body)}\r\n", body))
        assert read_answer(client).endswith(body)


def test_pipelined_requests_are_answered_in_order(live: Live) -> None:
    requests = [request("POST", "/echo", "content-length: 1\r\n", b"%d" % number) for number in range(5)]
    with live.connect() as client:
        client.sendall(b"".join(requests))
        data = b""
        while data.count(b"HTTP/1.1 200") < 5 or not data.endswith(b"4"):
            data += client.recv(4096)
    assert [part[-1:] for part in data.split(b"HTTP/1.1 200")[1:]] == [b"%d" % number for number in range(5)]


def test_an_upgrade_to_http2_is_ignored(live: Live) -> None:
    """As the HTTP client of Java asks for with each request."""
    headers = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    with live.connect() as client:
        client.sendall(request("POST", "/echo", headers + "content-length: 3\r\n", b"abc"))
        assert read_answer(client).endswith(b"abc")


def test_what_is_no_http_is_400(live: Live) -> None:
    with live.connect() as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200)
        assert status_of(read_all(client)) == 400


def test_a_slow_body_is_408(live: Live) -> None:
    with live.connect() as client:
        client.sendall(request("POST", "/echo", "content-length: 5000\r\n"))
        sender = threading.Thread(target=trickle, args=(client, b"x" * 60))
        sender.start()
        begin = time.monotonic()
        assert status_of(read_answer(client)) == 408
        assert time.monotonic() - begin < 2
        sender.join()


def chunked(size: int) -> bytes:
    piece = b"x" * 1000
    return (b"%x\r\n%b\r\n" % (len(piece), piece)) * (size // len(piece)) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [101_000, 20_000_000])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_too_large_is_413_and_the_client_reads_that(live: Live, size: int, is_chunked: bool) -> None:
    headers = "transfer-encoding: chunked\r\n" if is_chunked else f"content-length: {size}\r\n"
    with live.connect() as client:
        body = chunked(size) if is_chunked else bytes(size)
        client.sendall(request("POST", "/echo", f"{headers}connection: close\r\n", body))
        answer = read_all(client)
    assert status_of(answer) == 413
    assert b"--max-body-mib" in answer


@pytest.mark.parametrize("size", [100, 100_000, 20_000_000])
def test_a_client_without_a_key_reads_that_whatever_it_sends(size: int) -> None:
    with running(Demo(), api_keys=("k",)) as live, live.connect() as client:
        client.sendall(request("POST", "/echo", f"content-length: {size}\r\n", bytes(size)))
        assert status_of(read_answer(client)) == 401


def test_expect_continue_is_refused_before_the_body_is_sent(live: Live) -> None:
    with live.connect() as client:
        client.sendall(request("POST", "/echo", "expect: 100-continue\r\ncontent-length: 10000000\r\n"))
        assert status_of(read_answer(client)) == 413


def test_a_client_that_does_not_read_is_dropped(live: Live) -> None:
    with live.connect() as client:
        client.sendall(request("GET", "/big"))
        wait_until(lambda: live.num_connections == 1)
        wait_until(lambda: live.num_connections == 0, 5)


def test_a_client_that_reads_slowly_is_served(live: Live) -> None:
    """Longer in all than an answer may stay unread."""
    received = 0
    with live.connect() as client:
        client.sendall(request("GET", "/big", "connection: close\r\n"))
        while piece := client.recv(1 << 20):
            received += len(piece)
            time.sleep(0.01 if received < 40 << 20 else 0)
    assert received > 64 << 20


def test_a_flood_behind_a_running_request_ends_the_connection() -> None:
    demo = Demo()
    with running(demo, max_header_bytes=4096) as live, live.connect() as client:
        client.sendall(request("GET", "/stream"))
        wait_until(lambda: demo.num_streams == 1)
        with contextlib.suppress(OSError):
            client.sendall(b"x: y\r\n" * 10_000)
            client.sendall(b"x: y\r\n" * 10_000)
        wait_until(lambda: demo.num_cut == 1)
        assert live.num_connections == 0


def test_idle_connections_do_not_keep_others_out(live: Live) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(live.connect()) for _ in range(200)]
        for client in idle[:100]:
            client.sendall(HEAD[:20])
        begin = time.monotonic()
        assert live.get().endswith(b"hello")
        assert time.monotonic() - begin < 0.35, "it waited for the others to be closed"
    wait_until(lambda: live.num_connections == 0)


def test_connections_beyond_the_limit_are_told_to_retry() -> None:
    with running(Demo(), max_connections=3) as live:
        held = [live.connect() for _ in range(3)]
        wait_until(lambda: live.num_connections == 3)
        with live.connect() as client:
            answer = read_all(client)
        assert status_of(answer) == 503
        assert b"retry-after" in answer
        for client in held:
            client.close()
        wait_until(lambda: live.num_connections == 0)
        assert live.get().endswith(b"hello")


def test_a_running_request_finishes_before_the_server_ends() -> None:
    demo = Demo()
    with running(demo) as live, live.connect() as client:
        client.sendall(request("GET", "/stream"))
        wait_until(lambda: demo.num_streams == 1)
        live.server.should_exit = True
        wait_until(lambda: is_refused(live))
        demo.is_done.set()
        assert read_all(client).endswith(b"end\n\r\n0\r\n\r\n")


def test_a_request_that_outlasts_the_shutdown_is_aborted_and_ends_properly() -> None:
    demo = Demo()
    registry = NoRegistry(on_close=demo.is_done.set)
    with running(demo, registry, shutdown_seconds=0.3) as live, live.connect() as client:
        client.sendall(request("GET", "/stream"))
        wait_until(lambda: demo.num_streams == 1)
        begin = time.monotonic()
        live.server.should_exit = True
        assert read_all(client).endswith(b"end\n\r\n0\r\n\r\n")
        assert 0.3 <= time.monotonic() - begin < 2


def test_an_idle_connection_does_not_delay_the_end() -> None:
    begin = time.monotonic()
    with running(Demo(), shutdown_seconds=5) as live, live.connect() as client:
        client.sendall(request("GET", "/"))
        read_answer(client)
        live.server.should_exit = True
        assert read_all(client) == b""
    assert time.monotonic() - begin < 2


def test_a_port_in_use_is_one_clear_line() -> None:
    (first,) = open_sockets("127.0.0.1", 0)
    with first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(CodemillError, match=f"^port {port} of 127.0.0.1 is in use: ") as caught:
            open_sockets("127.0.0.1", port)
        assert not isinstance(caught.value, UsageError)


def test_a_port_is_free_again_at_once() -> None:
    with running(Demo()) as live:
        live.get()
    (again,) = open_sockets("127.0.0.1", live.port)
    again.close()


@pytest.mark.parametrize(
    ("host", "port", "kind", "message"),
    [
        ("127.0.0.1", 70000, UsageError, "--port 70000"),
        ("no.such.host.invalid", 0, UsageError, "--host no.such.host.invalid"),
        ("192.0.2.1", 0, CodemillError, "no address of this machine"),
        ("a" * 70, 0, UsageError, "--host"),
    ],
)
def test_an_address_that_cannot_be_is_one_clear_line(host: str, port: int, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        open_sockets(host, port)


def test_localhost_has_one_port_on_all_its_addresses() -> None:
    sockets = open_sockets("localhost", 0)
    try:
        assert len({listening.getsockname()[1] for listening in sockets}) == 1
        assert sockets[0].family == socket.AF_INET
        assert url_of(sockets[0], "localhost").startswith("http://localhost:")
    finally:
        for listening in sockets:
            listening.close()


def test_the_url_is_one_that_works_on_this_machine() -> None:
    (listening,) = open_sockets("0.0.0.0", 0)
    with listening:
        assert url_of(listening, "0.0.0.0") == f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_the_limit_of_open_files_is_raised() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(before[1], 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
