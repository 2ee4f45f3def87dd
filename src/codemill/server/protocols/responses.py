"""`/v1/responses`, OpenAI's newer protocol, without its store: every request brings its whole conversation."""

import asyncio

from fastapi import APIRouter, Request, Response

from codemill.server.aside import read_body
from codemill.server.errors import ApiError
from codemill.server.generation import prepare
from codemill.server.json_response import json_response
from codemill.server.json_route import JsonRoute
from codemill.server.openapi import JSON_OBJECT, STREAMING
from codemill.server.protocols.responses_body import ResponseBody
from codemill.server.protocols.responses_output import Output, read_output
from codemill.server.protocols.responses_writer import ResponseObject, ResponseWriter
from codemill.server.respond import Server, respond_stream, respond_with

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/v1/responses", responses=STREAMING)
@router.post("/responses", include_in_schema=False)
async def create_response(body: ResponseBody, request: Request) -> Response:
    """Answer a conversation, with tools if there are any. Nothing is stored."""
    tools = await read_body(request, body.offered_tools)
    generation = await read_body(request, lambda: body.generation_request(tools))
    echo = body.echo(tools)
    output = Output(tools, body.encodes_reasoning)
    if not body.stream:
        _, model = await respond_with(request, body.model, generation, lambda events: read_output(output, events))
        return json_response(ResponseObject(model.name, echo).ended(output))
    return await respond_stream(
        request,
        body.model,
        generation,
        lambda name: ResponseWriter(ResponseObject(name, echo), output),
        every_progress=bool(body.return_progress),
    )


@router.post("/v1/responses/input_tokens", responses=JSON_OBJECT)
async def count_input_tokens(body: ResponseBody, request: Request) -> Response:
    """How many tokens the prompt of such a request has."""
    server: Server = request.app.state.server
    generation = await read_body(request, lambda: body.generation_request(body.offered_tools()))
    async with server.registry.lease(body.model) as model:
        prepared = await asyncio.to_thread(prepare, model, generation)
    count = len(prepared.prompt.token_ids or ())
    return json_response({"object": "response.input_tokens", "input_tokens": count})


@router.get("/v1/responses/{response_id}", responses=JSON_OBJECT)
@router.delete("/v1/responses/{response_id}", responses=JSON_OBJECT)
async def find_response(response_id: str) -> Response:
    """Always 404: nothing is stored."""
    raise ApiError(404, f"there is no response {response_id:.80}: this server stores none", param="response_id")
