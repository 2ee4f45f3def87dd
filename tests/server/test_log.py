import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from codemill.server.access import Access
from codemill.server.asgi import Receive, Scope, Send
from codemill.server.limits import BodyLimit
from codemill.server.log import record_of, set_up_logging
from codemill.server.request_log import RequestLog
from codemill.server.settings import ServerSettings
from server.asgi_calls import Echo, call, make_scope
from server.logging_state import restored_logging

CHUNKED = {"transfer-encoding": "chunked"}


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    with restored_logging():
        yield


def logged(app: Any, scope: Scope, log_format: str = "json") -> list[str]:
    stream = io.StringIO()
    set_up_logging(log_format, stream)  # type: ignore[arg-type]
    call(RequestLog(app), scope)
    return stream.getvalue().splitlines()


async def chat(scope: Scope, receive: Receive, send: Send) -> None:
    record = record_of(scope)
    record.model, record.prompt_tokens, record.completion_tokens, record.ttft_seconds = "coder", 19012, 120, 0.21158
    await Echo()(scope, receive, send)


def test_a_request_is_one_line_of_json() -> None:
    (line,) = logged(chat, make_scope(headers={"x-request-id": "mine-1"}))
    values = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", values.pop("time"))
    assert 0 <= values.pop("seconds") < 1
    assert values == {
        "level": "info",
        "event": "request",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "model": "coder",
        "prompt_tokens": 19012,
        "completion_tokens": 120,
        "ttft_seconds": 0.2116,
        "client": "10.0.0.9:4321",
        "id": "mine-1",
    }


def test_a_request_is_one_line_of_text() -> None:
    (line,) = logged(chat, make_scope(headers={"x-request-id": "mine-1"}), "text")
    assert re.search(
        r"Z info    POST /v1/chat/completions 200 [\d.e-]+s model=coder prompt_tokens=19012 completion_tokens=120 "
        r"ttft_seconds=0.2116 client=10.0.0.9:4321 id=mine-1$",
        line,
    )


def test_what_a_client_sends_cannot_forge_a_line() -> None:
    path = "/v1/x\n2026-01-01T00:00:00Z info GET /admin 200"
    headers = {"x-request-id": "a b\nc"}
    (line,) = logged(Echo(), make_scope(path=path, headers=headers), "text")
    assert "\\n2026" in line
    (line,) = logged(Echo(), make_scope(path=path, headers=headers))
    assert json.loads(line)["path"] == path
    assert json.loads(line)["id"].startswith("req-")


@pytest.mark.parametrize(
    ("given", "expected"), [("abc-1.2:3", "abc-1.2:3"), ("x" * 65, None), ("a b", None), ("", None)]
)
def test_the_answer_has_the_id_of_the_request(given: str, expected: str | None) -> None:
    answer = call(RequestLog(Echo()), make_scope(headers={"x-request-id": given}))
    found = answer.headers["x-request-id"]
    assert found == expected if expected else re.fullmatch(r"req-[0-9a-f]{16}", found)


def test_probes_are_only_logged_when_they_fail() -> None:
    assert logged(Echo(), make_scope("GET", "/health")) == []

    async def unready(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    assert len(logged(unready, make_scope("GET", "/health"))) == 1


def test_a_client_that_left_is_told_from_one_that_was_served() -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        """As the answer to a request whose client has left."""

    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    assert json.loads(logged(silent, make_scope())[0])["status"] == 499
    values = json.loads(logged(half, make_scope())[0])
    assert (values["status"], values["is_cut"]) == (200, True)


SECRET = "the user's prompt"


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError(f"cannot parse {SECRET}")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_exception_is_logged_by_place_and_kind_alone(log_format: str) -> None:
    stream = io.StringIO()
    set_up_logging(log_format, stream)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot parse"):
        call(RequestLog(broken), make_scope())
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
    text = stream.getvalue()
    assert SECRET not in text
    assert "ValueError" in text
    assert "test_log.py" in text
    if log_format == "json":
        assert [json.loads(line)["level"] for line in text.splitlines()] == ["info", "error"]


def test_a_refusal_says_why() -> None:
    app = Access(Echo(), ServerSettings(api_keys=("k",)))
    (line,) = logged(app, make_scope())
    assert json.loads(line)["error"] == "invalid_api_key"


def test_prompts_are_logged_where_that_is_asked_for() -> None:
    stream = io.StringIO()
    set_up_logging("json", stream)
    body = '{"prompt": "zwei Zeilen, größer"}'.encode()
    middle = body.index("ß".encode()) + 1
    pieces = [body[:middle], body[middle:]]
    for log_prompts in (False, True):
        call(RequestLog(BodyLimit(Echo(), ServerSettings()), log_prompts), make_scope(headers=CHUNKED), pieces)
    plain, full = map(json.loads, stream.getvalue().splitlines())
    assert "Zeilen" not in json.dumps(plain)
    assert full["body"] == full["answer"] == body.decode()


def test_no_more_of_a_body_is_logged_than_is_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codemill.server.request_log.MOST_LOGGED", 10)
    stream = io.StringIO()
    set_up_logging("text", stream)
    answer = call(RequestLog(BodyLimit(Echo(), ServerSettings()), True), make_scope(headers=CHUNKED), [b"x" * 8] * 3)
    assert len(answer.body) == 24
    (line,) = stream.getvalue().splitlines()
    assert f" body={'x' * 10} answer={'x' * 10}" in line


def test_without_the_middleware_a_record_is_still_there() -> None:
    scope = make_scope()
    record_of(scope).model = "coder"
    assert record_of(scope).model == "coder"
