"""`/health`, `/version`, `/props` and `/metrics`: what there is to know of the server itself."""

from fastapi import APIRouter, Request, Response

from codemill import __version__
from codemill.errors import CodemillError
from codemill.server.json_response import json_response
from codemill.server.metrics_page import CONTENT_TYPE, MetricsPage
from codemill.server.openapi import JSON_OBJECT
from codemill.server.respond import Server

router = APIRouter(tags=["Status"])


@router.get("/health", responses=JSON_OBJECT)
@router.get("/v1/health", include_in_schema=False)
async def health(request: Request) -> Response:
    """200 once the server answers requests; 503 while it loads its model, or ends."""
    server: Server = request.app.state.server
    if server.registry.is_ready:
        return json_response({"status": "ok"})
    message = "loading model" if server.registry.is_loading else "not ready"
    error = {"code": 503, "message": message, "type": "unavailable_error"}
    return json_response({"status": message, "error": error}, 503)


@router.get("/version", responses=JSON_OBJECT)
async def version() -> Response:
    """The version of Codemill."""
    return json_response({"version": __version__})


@router.get("/props", responses=JSON_OBJECT)
async def props(request: Request) -> Response:
    """What clients of llama.cpp's server ask of the first model."""
    server: Server = request.app.state.server
    card = server.registry.models()[0]
    if card.max_model_len is None:  # not loaded: a question is no reason to
        return json_response({"model_alias": card.name, "model_path": card.spec, "total_slots": 1})
    async with server.registry.lease(None) as model:
        settings = {"n_ctx": model.max_model_len, "params": {}}
        return json_response(
            {
                "default_generation_settings": settings,
                "total_slots": 1,
                "model_alias": model.name,
                "model_path": card.spec,
                "chat_template": model.tokenizer.chat_template or "",
                "modalities": {"vision": False, "audio": False},
                "build_info": f"codemill-{__version__}",
            }
        )


@router.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
async def metrics(request: Request) -> Response:
    """Counts and times, in Prometheus' text format."""
    server: Server = request.app.state.server
    page: MetricsPage = request.app.state.metrics
    try:
        snapshots = await server.registry.metrics()
    except CodemillError:  # an engine that ends has nothing more to say; the server's own figures remain
        snapshots = {}
    return Response(page.text(snapshots), headers={"content-type": CONTENT_TYPE})
