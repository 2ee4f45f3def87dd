import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from codemill.server.asgi import Receive, Scope, Send
from codemill.server.log import RequestLog, record_of, set_up_logging
from server.asgi_calls import Echo, call, make_scope

LOGGERS = ("codemill", "uvicorn", "asyncio")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).level) for name in LOGGERS}
    raises = logging.raiseExceptions
    yield
    logging.raiseExceptions = raises
    for name, (handlers, level) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.level, logger.propagate = handlers, level, True


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


def test_prompts_appear_where_a_protocol_puts_them_in() -> None:
    async def telling(scope: Scope, receive: Receive, send: Send) -> None:
        record_of(scope).prompt = "two\nlines"
        await Echo()(scope, receive, send)

    assert json.loads(logged(telling, make_scope())[0])["prompt"] == "two\nlines"
    (line,) = logged(telling, make_scope(), "text")
    assert 'prompt="two\\nlines"' in line


def test_without_the_middleware_a_record_is_still_there() -> None:
    scope = make_scope()
    record_of(scope).model = "coder"
    assert record_of(scope).model == "coder"
