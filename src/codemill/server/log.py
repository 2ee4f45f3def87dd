"""The server's log: one line for each request and event, as text or JSON. No prompt, key or file content is in it."""

import json
import logging
import re
import sys
import time
import traceback
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, TextIO

from codemill.server.asgi import Scope
from codemill.server.settings import LogFormat

RECORD = "codemill.record"  # where it lies in an ASGI scope
CLIENT_GONE = 499  # as nginx calls it: the client left before there was an answer
_CONTROL = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029]")
log = logging.getLogger("codemill.server")


@dataclass(slots=True)
class RequestRecord:
    """What the log says of a request. Protocols fill in what they know; None stays out of the line.

    seconds: until the last byte was sent. ttft_seconds: until the first token. is_cut: the client left in mid-answer.
    error: the code or kind of what went wrong. body, answer: as they were sent, and only where the settings say
    `log_prompts`.
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
    body: str | None = None
    answer: str | None = None


_FIELDS = tuple(field.name for field in fields(RequestRecord))


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request with that ASGI scope; one that nobody reads if requests are not logged."""
    record = scope.get(RECORD)
    if record is None:
        record = scope[RECORD] = RequestRecord(scope["method"], scope["path"])
    return record


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
    """Have the server's events, and errors of uvicorn and asyncio, written as lines to standard error.

    uvicorn's warnings stay out: each broken request has one, so that a stranger could fill the log.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter(log_format))
    for name, level in (("codemill", logging.INFO), ("uvicorn", logging.ERROR), ("asyncio", logging.WARNING)):
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
