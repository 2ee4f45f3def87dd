"""Routes whose body is JSON, whatever its content type says, and however broken its Unicode is."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from codemill.chat.tokenizer import replace_surrogates
from codemill.errors import CodemillError
from codemill.server.errors import ApiError, api_error_of
from codemill.server.log import log

MOST_CONTAINERS = 500_000  # a million and a half take a second to read, in which nobody else is served


class JsonRoute(APIRoute):
    """Reads every body as JSON: `curl -d` and some editors name no content type, or a wrong one.

    Text cut inside a character, which JavaScript clients send as half of a surrogate pair, has U+FFFD there.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            scope = request.scope
            others = [each for each in scope["headers"] if each[0] != b"content-type"]
            scope["headers"] = [*others, (b"content-type", b"application/json")]
            json_request = _JsonRequest(scope, request.receive)
            try:
                _check_containers(await json_request.body())
                return await handle(json_request)
            except (ApiError, CodemillError, HTTPException, RequestValidationError):
                raise
            except Exception as error:
                log.error("a request failed", exc_info=error)
                raise api_error_of(error) from error

        return handle_json


class _JsonRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return from_json(body, allow_inf_nan=False)
        except ValueError as error:
            return _from_broken_text(body, str(error))


def _check_containers(body: bytes) -> None:
    if body.count(b"[") + body.count(b"{") > MOST_CONTAINERS:
        raise ApiError(413, f"the body has more than {MOST_CONTAINERS} objects and lists", "request_too_large")


def _from_broken_text(body: bytes, problem: str) -> Any:
    """JSON that is valid but for halves of surrogate pairs. Raises JSONDecodeError if that is not all."""
    if b"\\ud" not in body and b"\\uD" not in body:
        raise json.JSONDecodeError(problem, "", 0)
    try:
        return _whole_characters(json.loads(body, parse_constant=_no_constant))
    except (ValueError, RecursionError):
        raise json.JSONDecodeError(problem, "", 0) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, list):
        return [_whole_characters(each) for each in value]
    if isinstance(value, dict):
        return {replace_surrogates(key): _whole_characters(each) for key, each in value.items()}
    return value
