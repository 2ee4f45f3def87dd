"""The server's log: one line for each request and event, as text or JSON. No prompt, key or file content is in it."""

import json
import logging
import os
import re
import sys
import time
import traceback
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, TextIO

from codemill.server.asgi import App, Message, Receive, Scope, Send, header
from codemill.server.settings import LogFormat

RECORD = "codemill.record"  # where it lies in an ASGI scope
CLIENT_GONE = 499  # as nginx calls it: the client left before there was an answer
QUIET_PATHS = ("/health", "/metrics", "/favicon.ico", "/static/")  # asked for all the time, and of no interest
_REQUEST_ID = re.compile(rb"[\w.:-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029]")
log = logging.getLogger("codemill.server")


@dataclass(slots=True)
class RequestRecord:
    """What the log says of a request. Protocols fill in what they know; None stays out of the line.

    seconds: until the last byte was sent. ttft_seconds: until the first token. is_cut: the client left in mid-answer.
    error: the code or kind of what went wrong. prompt, answer: only where the settings say `log_prompts`.
    """

    method: str
    path: str
    status: int | None = None
    seconds: float | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    ttft_seconds: float | None = None
    finish_reason: str | None = None
    error: str | None = None
    is_cut: bool | None = None
    client: str | None = None
    id: str | None = None
    prompt: str | None = None
    answer: str | None = None


_FIELDS = tuple(field.name for field in fields(RequestRecord))


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request with that ASGI scope; one that nobody reads if requests are not logged."""
    record = scope.get(RECORD)
    if record is None:
        record = scope[RECORD] = RequestRecord(scope["method"], scope["path"])
    return record


class RequestLog:
    """ASGI middleware that writes a line when a request has ended, and gives each answer an `x-request-id`."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        request_id = _request_id(scope)
        record = RequestRecord(scope["method"], scope["path"], client=_client(scope), id=request_id.decode())
        scope[RECORD] = record
        is_done = False

        async def send_with_id(message: Message) -> None:
            nonlocal is_done
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", request_id)]}
            elif not message.get("more_body", False):
                is_done = True
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            record.status, record.error, is_done = record.status or 500, type(error).__name__, True
            raise
        finally:
            record.status = record.status or CLIENT_GONE
            record.is_cut = (not is_done and record.status != CLIENT_GONE) or None
            record.seconds = time.perf_counter() - begin
            if record.status >= 400 or not record.path.startswith(QUIET_PATHS):
                _log_request(record)


def _log_request(record: RequestRecord) -> None:
    """As `log.info` would, without the search for its caller, which costs as much as all else."""
    if log.isEnabledFor(logging.INFO):
        extra = {"record": record}
        log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, "request", (), None, extra=extra))


class LineFormatter(logging.Formatter):
    """Lines of text or JSON. Of an exception they have places and kind, but no message, which may quote a prompt."""

    def __init__(self, log_format: LogFormat = "text") -> None:
        super().__init__()
        self._is_json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        request: RequestRecord | None = getattr(record, "record", None)
        moment = f"{_second(int(record.created))}.{int(record.msecs):03}Z"
        values: dict[str, Any] = {"time": moment, "level": record.levelname.lower()}
        values |= {"event": "request", **request_fields(request)} if request else {"event": record.getMessage()}
        if record.exc_info and record.exc_info[1]:
            values["trace"] = trace_of(record.exc_info[1])
        if self._is_json:
            return json.dumps(values, ensure_ascii=False)
        return _text_line(values)


def request_fields(record: RequestRecord) -> dict[str, Any]:
    """What a record knows, by name; times to a tenth of a millisecond."""
    known = {name: value for name in _FIELDS if (value := getattr(record, name)) is not None}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in known.items()}


def trace_of(error: BaseException) -> list[str]:
    """Where an exception came from, innermost last, and its kind."""
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    return [*places, type(error).__name__]


def set_up_logging(log_format: LogFormat = "text", stream: TextIO | None = None) -> None:
    """Have the server's events, and what uvicorn and asyncio warn of, written as lines to standard error."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter(log_format))
    for name, level in (("codemill", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    logging.raiseExceptions = False  # a closed standard error must not end requests


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _text_line(values: dict[str, Any]) -> str:
    parts = [values.pop("time"), f"{values.pop('level'):7}"]
    trace = values.pop("trace", [])
    event = values.pop("event")
    if event == "request":
        parts += [
            values.pop("method"),
            _plain(values.pop("path")),
            str(values.pop("status")),
            f"{values.pop('seconds')}s",
        ]
    else:
        parts.append(" ".join(event.splitlines()))
    parts += [f"{name}={_plain(value)}" for name, value in values.items()]
    return "\n    ".join([" ".join(parts), *trace])


def _plain(value: Any) -> str:
    """A value in one word: what a client sent must not look like a line of the log."""
    text = str(value)
    return json.dumps(text) if _CONTROL.search(text) else text


def _request_id(scope: Scope) -> bytes:
    """The client's own, so that it finds its request in the log, or a new one."""
    given = header(scope, b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return b"req-" + os.urandom(8).hex().encode()


def _client(scope: Scope) -> str | None:
    """Of one that a proxy speaks for only the address is known."""
    client = scope.get("client")
    if not client:
        return None
    return f"{client[0]}:{client[1]}" if client[1] else str(client[0])
