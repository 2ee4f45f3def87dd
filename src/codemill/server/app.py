"""The application: routes, errors, and what stands before them."""

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from codemill import __version__
from codemill.errors import CodemillError
from codemill.server import web_page
from codemill.server.access import Access
from codemill.server.errors import ApiError, api_error_of
from codemill.server.http_metrics import HttpMetrics
from codemill.server.json_response import error_response
from codemill.server.limits import BodyLimit
from codemill.server.log import log, record_of
from codemill.server.metrics_page import MetricsPage
from codemill.server.protocols import ROUTERS
from codemill.server.registry import Registry
from codemill.server.request_log import RequestLog
from codemill.server.respond import Server
from codemill.server.settings import ServerSettings


def create_app(registry: Registry, settings: ServerSettings | None = None) -> FastAPI:
    """The ASGI application over the models of a registry. The caller starts and closes the registry."""
    settings = settings or ServerSettings()
    # Its pages of documentation would load scripts from elsewhere.
    app = FastAPI(title="Codemill", version=__version__, docs_url=None, redoc_url=None)
    app.state.server = Server(registry, settings)
    app.state.metrics = MetricsPage()
    for router in (web_page.router, *ROUTERS):
        app.include_router(router)
    for kind in (ApiError, CodemillError, Exception):
        app.add_exception_handler(kind, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    # The last one added stands first.
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Access, settings=settings)
    app.add_middleware(RequestLog, log_prompts=settings.log_prompts)
    app.add_middleware(HttpMetrics, counts=app.state.metrics.http)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError | CodemillError):
        log.error("a request failed", exc_info=error)
    return _told(request, api_error_of(error))


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    reason = first.get("ctx", {}).get("error") if first["type"] == "json_invalid" else None
    message = f"{place}: {first['msg']}" if place and reason is None else f"{first['msg']}: {reason or 'no body'}"
    return _told(request, ApiError(400, message, param=place or None))


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404:
        message = f"there is nothing at {request.url.path}"
    return _told(request, ApiError(error.status_code, message, headers=error.headers))


def _told(request: Request, error: ApiError) -> Response:
    record_of(request.scope).error = error.code or error.type
    return error_response(error, request.url.path)
