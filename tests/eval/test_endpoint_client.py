"""A server that misbehaves in every way a server can."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.eval import endpoint_client
from codemill.eval.endpoint import EndpointGenerator
from codemill.eval.endpoint_client import Endpoint, _retry_after
from codemill.eval.generation import Sampling
from eval.endpoint_server import GOOD, KEY, Reply, Server, ask, generator, request, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def test_all_requests_are_answered_several_at_a_time(server: Server) -> None:
    server.choose = lambda payload: Reply(json.dumps({"choices": [{"text": payload["prompt"]}]}).encode(), delay=0.2)
    begun = time.monotonic()
    results = list(generator(server, concurrency=8).generate([request(index=i) for i in range(24)]))
    assert time.monotonic() - begun < 3
    assert sorted(result.text for result in results) == sorted(f"prompt {i}" for i in range(24))
    assert all(result.text == f"prompt {result.request.index}" for result in results)


BROKEN = [
    Reply(b"", 500),
    Reply(b"busy", 429),
    Reply(b"down for maintenance", 503, {"Retry-After": "soon"}),
    Reply(b"", 408),
    Reply(b"<html>Bad gateway</html>", 502),
    Reply(b"<html>not JSON</html>"),
    Reply(b""),
    Reply(b"\xff\xfe\x00"),
    Reply(b"[" * 100_000),
    Reply(b"null"),
    Reply(b"[]"),
    Reply(b"{}"),
    Reply(b'{"choices": []}'),
    Reply(b'{"choices": [null]}'),
    Reply(b'{"choices": [{}]}'),
    Reply(b'{"choices": [{"text": null}]}'),
    Reply(b'{"error": {"message": "overloaded"}}'),
    Reply(length=10_000),
    Reply(json.dumps(GOOD).encode()[:20]),
    Reply(b"\x00garbage\r\n", 0),
    Reply(b"", 0),
    Reply(headers={"Transfer-Encoding": "chunked"}),
]


@pytest.mark.parametrize("broken", BROKEN)
def test_one_broken_answer_is_tried_again(server: Server, broken: Reply) -> None:
    server.replies = [broken, broken, Reply()]
    result = ask(server)
    assert (result.text, result.error) == (" 42", None)
    assert len(server.requests) == 3


@pytest.mark.parametrize("broken", BROKEN)
def test_nothing_but_broken_answers_is_an_error_of_the_sample(server: Server, broken: Reply) -> None:
    server.replies = [broken]
    result = ask(server, retries=2)
    assert result.text == ""
    assert result.error is not None
    assert "tried 3 times" in result.error
    assert "\n" not in result.error
    assert len(server.requests) == 3


@pytest.mark.parametrize("slow", [Reply(delay=3.0), Reply(drip=0.4)])
def test_a_slow_server_is_tried_twice(server: Server, slow: Reply) -> None:
    server.replies = [slow]
    begun = time.monotonic()
    result = ask(server, retries=5)
    assert result.error == "no answer within 0.5 s (tried 2 times)"
    assert time.monotonic() - begun < 10


def test_an_answer_without_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_client, "MAX_BODY", 1 << 20)
    server.replies = [Reply(b" " * (3 << 20))]
    assert "more than 1 MiB" in (ask(server, retries=0).error or "")


def test_retry_after_is_honoured(server: Server) -> None:
    server.replies = [Reply(b"", 429, {"Retry-After": "0.6"}), Reply()]
    begun = time.monotonic()
    assert ask(server).text == " 42"
    assert time.monotonic() - begun > 0.6


def test_retry_after_in_all_its_forms() -> None:
    assert [_retry_after(text) for text in (None, "7", "-3", "nan", "soon", "1e9")] == [0, 7, 0, 0, 0, 300]
    assert 25 < _retry_after(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert _retry_after(formatdate(time.time() - 30)) == 0


def test_waits_double_with_jitter() -> None:
    client = endpoint_client.EndpointClient(Endpoint("http://127.0.0.1", "m", backoff=1.0))
    for tries, longest in ((1, 1), (2, 2), (3, 4), (10, 60)):
        pauses = [client._pause(tries, 0.0) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
    assert client._pause(1, 90.0) == 90


def test_only_the_broken_request_fails(server: Server) -> None:
    server.choose = lambda payload: Reply(status=500) if payload["prompt"] == "prompt 5" else Reply()
    results = list(generator(server, retries=1).generate([request(index=i) for i in range(12)]))
    assert [result.request.index for result in results if result.error] == [5]
    assert len(results) == 12


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_the_server_refuses_is_not_repeated(server: Server, status: int) -> None:
    server.replies = [Reply(b'{"error": {"message": "too long: 9000 tokens"}}', status)]
    assert ask(server).error == f"the server answered {status} (too long: 9000 tokens)"
    assert len(server.requests) == 1


# What ends the run


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        (Reply(b'{"error": {"message": "bad key"}}', 401), "401 (bad key): check the key in OPENAI_API_KEY"),
        (Reply(b"", 403), "403: check the key"),
        (Reply(b'{"detail": "no model tiny"}', 404), "404 (no model tiny): check --endpoint and --model"),
        (Reply(b"", 307, {"Location": "http://127.0.0.1:1/"}), "307: it redirects"),
        (Reply(b"", 302, {"Location": "http://127.0.0.1:1/"}), "302: it redirects"),
    ],
)
def test_a_wrong_configuration_ends_it_at_once(server: Server, reply: Reply, named: str) -> None:
    server.replies = [reply]
    with pytest.raises(CodemillError, match=r"^http://127\.0\.0\.1:\d+/v1: the server answered ") as caught:
        list(generator(server, concurrency=2).generate([request(index=i) for i in range(50)]))
    assert named in str(caught.value)
    assert len(server.requests) <= 4


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    made = EndpointGenerator(Endpoint(url, "tiny", retries=2, backoff=0.01), Sampling())
    with pytest.raises(CodemillError, match=r"cannot reach .*refused.*tried 3 times.*is the server running"):
        list(made.generate([request(index=i) for i in range(50)]))


def test_a_host_that_does_not_exist() -> None:
    made = EndpointGenerator(Endpoint("http://host.invalid/v1", "tiny", retries=0), Sampling())
    with pytest.raises(CodemillError, match=r"cannot reach http://host\.invalid/v1"):
        list(made.generate([request()]))


def test_a_server_that_fails_for_long_ends_the_run(server: Server) -> None:
    server.replies = [*[Reply()] * 5, Reply(b"", 500)]
    answered = []
    with pytest.raises(CodemillError, match=r"requests in a row had no answer; the last: the server answered 500"):
        answered += generator(server, retries=0, concurrency=2).generate([request(index=i) for i in range(500)])
    assert len(server.requests) < 30


def test_a_few_requests_that_all_fail_are_errors_of_their_own(server: Server) -> None:
    server.replies = [Reply(b"", 500)]
    results = list(generator(server, retries=0).generate([request(index=i) for i in range(3)]))
    assert [bool(result.error) for result in results] == [True] * 3


def test_leaving_early_stops_the_threads(server: Server) -> None:
    server.replies = [Reply(), Reply(b"", 429, {"Retry-After": "60"})]
    results = generator(server, concurrency=4).generate([request(index=i) for i in range(100)])
    next(results)
    results.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    names = [thread.name for thread in threading.enumerate() if "_work" in thread.name]
    assert names == []
    assert len(server.requests) < 20


# The key


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_the_key_is_never_shown(server: Server, status: int) -> None:
    server.replies = [Reply(json.dumps({"error": {"message": f"Incorrect API key: {KEY}"}}).encode(), status)]
    try:
        shown = ask(server, retries=0).error or ""
    except CodemillError as error:
        shown = str(error)
    assert KEY not in shown
    assert "***" in shown
    assert KEY not in repr(Endpoint(server.url, "m", KEY))


@pytest.mark.parametrize(
    ("url", "model", "key", "named"),
    [
        ("127.0.0.1:8000", "m", None, "http://127.0.0.1:8000/v1"),
        ("ftp://host/", "m", None, "give a URL"),
        ("http://", "m", None, "give a URL"),
        ("http://user:hidden@host/v1", "m", None, "OPENAI_API_KEY, not in the URL"),
        ("http://host/v1", "", None, "--model NAME"),
        ("http://host/v1", "m", "hidden\n", "check OPENAI_API_KEY"),
        ("http://host/v1", "m", "hidden\u2028", "check OPENAI_API_KEY"),
    ],
)
def test_settings_that_cannot_be(url: str, model: str, key: str | None, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        Endpoint(url, model, key)
    assert named in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_url_with_a_query_keeps_it_but_does_not_show_it() -> None:
    endpoint = Endpoint("https://host/openai/deployments/x?api-version=1&sig=hidden", "m")
    assert endpoint.address("completions") == "https://host/openai/deployments/x/completions?api-version=1&sig=hidden"
    assert endpoint.shown == "https://host/openai/deployments/x"
