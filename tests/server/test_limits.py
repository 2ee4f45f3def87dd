import asyncio

import pytest

from codemill.server import body
from codemill.server.asgi import Message, Receive, Scope, Send
from codemill.server.limits import BodyLimit
from codemill.server.settings import ServerSettings
from server.asgi_calls import Echo, acall, call, make_scope

SETTINGS = ServerSettings(max_body_bytes=100, body_seconds=0.2)
CHUNKED = {"transfer-encoding": "chunked"}


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "LINGER_SECONDS", 0.05)


def test_a_body_arrives_in_one_piece() -> None:
    pieces = [b"one ", b"two ", b"three"]
    answer = call(BodyLimit(Echo(), SETTINGS), make_scope(headers=CHUNKED), pieces)
    assert (answer.status, answer.body) == (200, b"one two three")


def test_as_much_as_is_allowed_passes() -> None:
    headers = {"content-length": "100"}
    answer = call(BodyLimit(Echo(), SETTINGS), make_scope(headers=headers), [b"x" * 60, b"x" * 40])
    assert (answer.status, len(answer.body)) == (200, 100)


@pytest.mark.parametrize(
    ("headers", "pieces"),
    [
        ({"content-length": "101"}, [b"x" * 101]),
        ({"content-length": "9" * 5000}, [b"x"]),
        (CHUNKED, [b"x" * 50, b"x" * 51]),
        (CHUNKED, [b"x" * 20] * 1000),
    ],
)
def test_a_body_too_large_is_413(headers: dict[str, str], pieces: list[bytes]) -> None:
    app = Echo()
    answer = call(BodyLimit(app, SETTINGS), make_scope(headers=headers), pieces)
    assert answer.status == 413
    assert "connection" in answer.headers or len(pieces) == 2, "what is still to come would be taken for a request"
    assert "--max-body-mib" in answer.error["message"]
    assert app.scopes == []


def test_a_slow_body_is_408() -> None:
    app = Echo()
    answer = call(BodyLimit(app, SETTINGS), make_scope(headers=CHUNKED), [b"x"] * 50, gap=0.02)
    assert answer.status == 408
    assert app.scopes == []


def test_too_many_large_bodies_at_a_time_are_503() -> None:
    limit = BodyLimit(Echo(), SETTINGS)

    async def run() -> list[int]:
        calls = [acall(limit, make_scope(headers=CHUNKED), [b"x" * 45] * 2, gap=0.05) for _ in range(20)]
        answers = await asyncio.gather(*calls)
        later = await acall(limit, make_scope(headers=CHUNKED), [b"x" * 90])
        return [*sorted(answer.status for answer in answers), later.status]

    statuses = asyncio.run(run())
    assert statuses[-1] == 200
    assert set(statuses[:-1]) == {200, 503}


def test_the_application_hears_of_a_disconnect_after_the_body() -> None:
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.extend([await receive(), await receive()])

    async def main() -> None:
        messages = [{"type": "http.request", "body": b"x", "more_body": False}, {"type": "http.disconnect"}]

        async def receive() -> Message:
            return messages.pop(0)

        async def send(message: Message) -> None:
            raise AssertionError

        await BodyLimit(app, SETTINGS)(make_scope(headers={"content-length": "1"}), receive, send)

    asyncio.run(main())
    assert [message["type"] for message in heard] == ["http.request", "http.disconnect"]


def test_the_application_is_not_called_for_a_client_that_has_left() -> None:
    app = Echo()

    async def main() -> None:
        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            raise AssertionError

        await BodyLimit(app, SETTINGS)(make_scope(headers=CHUNKED), receive, send)

    asyncio.run(main())
    assert app.scopes == []


def test_without_a_body_nothing_is_read() -> None:
    app = Echo()
    scope = make_scope("GET", headers={"content-length": "0"})
    assert asyncio.run(acall(BodyLimit(app, SETTINGS), scope)).status == 200
    assert app.scopes == [scope]
