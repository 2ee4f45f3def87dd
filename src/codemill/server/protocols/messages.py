"""`/v1/messages` and `/v1/messages/count_tokens`. Source: Anthropic's API reference and the `anthropic` package."""

import asyncio

from fastapi import APIRouter, Request, Response

from codemill.server.aside import read_body
from codemill.server.generation import GenerationRequest, count_tokens
from codemill.server.json_response import json_response
from codemill.server.json_route import JsonRoute
from codemill.server.log import record_of
from codemill.server.openapi import JSON_OBJECT, STREAMING
from codemill.server.protocols.messages_body import MessagesBody
from codemill.server.protocols.messages_object import message_object
from codemill.server.protocols.messages_writer import MessagesWriter
from codemill.server.respond import Server, respond_stream, respond_whole
from codemill.server.stream import run_unless_disconnected

router = APIRouter(route_class=JsonRoute, tags=["Anthropic"])


@router.post("/v1/messages", responses=STREAMING)
async def create_message(body: MessagesBody, request: Request) -> Response:
    """Answer a conversation, with tools if there are any."""
    generation = await read_body(request, body.generation_request)
    if body.stream:
        return await respond_stream(request, body.model, generation, MessagesWriter)
    answer, model = await respond_whole(request, body.model, generation)
    return json_response(message_object(model.name, answer))


@router.post("/v1/messages/count_tokens", responses=JSON_OBJECT)
async def count_message_tokens(body: MessagesBody, request: Request) -> Response:
    """Count the tokens that the model would read."""
    generation = await read_body(request, body.generation_request)
    counting = _count(request, body.model, generation)
    return json_response({"input_tokens": await run_unless_disconnected(request, counting)})


async def _count(request: Request, name: str | None, generation: GenerationRequest) -> int:
    server: Server = request.app.state.server
    record = record_of(request.scope)
    async with server.registry.lease(name) as model:
        record.model = model.name
        record.prompt_tokens = await asyncio.to_thread(count_tokens, model, generation)
        return record.prompt_tokens
