"""`/v1/models`, as OpenAI's clients want it and, for those that name an Anthropic version, as Anthropic's do."""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from codemill.server.json_response import json_response
from codemill.server.openapi import JSON_OBJECT
from codemill.server.registry import model_not_found
from codemill.server.respond import Server
from codemill.server.served_model import ModelCard

router = APIRouter(tags=["Models"])
OWNER = "codemill"


@router.get("/v1/models", responses=JSON_OBJECT)
@router.get("/models", include_in_schema=False)
async def list_models(request: Request) -> Response:
    """The models and adapters that requests may name."""
    server: Server = request.app.state.server
    cards = server.registry.models()
    if _is_anthropic(request):
        return json_response(_anthropic_page(cards, request))
    return json_response({"object": "list", "data": [_openai_model(card) for card in cards]})


@router.get("/v1/models/{name:path}", responses=JSON_OBJECT)
@router.get("/models/{name:path}", include_in_schema=False)
async def get_model(name: str, request: Request) -> Response:
    """One of them."""
    server: Server = request.app.state.server
    cards = {card.name: card for card in server.registry.models()}
    if name not in cards:
        raise model_not_found(name, list(cards))
    return json_response(_anthropic_model(cards[name]) if _is_anthropic(request) else _openai_model(cards[name]))


def _is_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers


def _openai_model(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": OWNER,
        "root": card.alias_of or card.name,
        "parent": card.parent,
        "max_model_len": card.max_model_len,
        "loaded": card.is_loaded,
    }


def _anthropic_model(card: ModelCard) -> dict[str, Any]:
    created = datetime.fromtimestamp(card.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    size = {} if card.max_model_len is None else {"max_input_tokens": card.max_model_len}
    return {"type": "model", "id": card.name, "display_name": card.name, "created_at": created, **size}


def _anthropic_page(cards: list[ModelCard], request: Request) -> dict[str, Any]:
    """The part of the list that the query asks for: before_id, after_id, limit."""
    names = [card.name for card in cards]
    query = request.query_params
    after, before, limit = query.get("after_id"), query.get("before_id"), query.get("limit", "")
    if after in names:
        cards = cards[names.index(after) + 1 :]
    elif before in names:
        cards = cards[: names.index(before)]
    count = int(limit[:6]) if limit.isascii() and limit.isdigit() else len(cards)
    count = count or len(cards)
    page = cards[-count:] if before in names and after not in names else cards[:count]
    data = [_anthropic_model(card) for card in page]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": len(page) < len(cards), "first_id": first, "last_id": last}
