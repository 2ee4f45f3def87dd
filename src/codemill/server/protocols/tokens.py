"""`/tokenize`, `/detokenize`, `/apply-template`. Sources: llama.cpp's server and vLLM, whose fields are all there."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from codemill.chat.tokenizer import Tokenizer
from codemill.errors import UsageError
from codemill.server.aside import read_body
from codemill.server.generation import ChatPrompt, GenerationRequest, prompt_ids
from codemill.server.json_list import JsonList
from codemill.server.json_response import json_response
from codemill.server.json_route import JsonRoute
from codemill.server.openapi import JSON_OBJECT
from codemill.server.protocols.chat_body import ChatBody
from codemill.server.respond import Server
from codemill.server.served_model import ServedModel

router = APIRouter(route_class=JsonRoute, tags=["Tokens"])


class TokenizeBody(BaseModel):
    """`content` (llama.cpp) or `prompt` (vLLM) is text, `messages` a conversation."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: JsonList[dict[str, Any]] | None = None
    tools: JsonList[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    parse_special: bool | None = Field(None, description="Whether control tokens in the text are meant as such.")
    with_pieces: bool | None = Field(None, description="Each token with its text, or its bytes where they are none.")
    return_token_strs: bool | None = None


class DetokenizeBody(BaseModel):
    """Token ids."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    tokens: JsonList[int]


@router.post("/tokenize", responses=JSON_OBJECT)
async def tokenize(body: TokenizeBody, request: Request) -> Response:
    """Text or a conversation as token ids."""
    server: Server = request.app.state.server
    async with server.registry.lease(body.model) as model:
        return json_response(await asyncio.to_thread(_tokenized, model, body))


@router.post("/detokenize", responses=JSON_OBJECT)
async def detokenize(body: DetokenizeBody, request: Request) -> Response:
    """Token ids as text."""
    server: Server = request.app.state.server
    async with server.registry.lease(body.model) as model:
        size = model.tokenizer.vocab_size
        strange = next((each for each in body.tokens if not 0 <= each < size), None)
        if strange is not None:
            raise UsageError(f"tokens: {strange} is outside the vocabulary, ids 0 to {size - 1}")
        text = await asyncio.to_thread(model.tokenizer.decode, body.tokens)
        return json_response({"content": text, "prompt": text})


@router.post("/apply-template", responses=JSON_OBJECT)
async def apply_template(body: ChatBody, request: Request) -> Response:
    """A conversation as the text that the model reads."""
    server: Server = request.app.state.server
    async with server.registry.lease(body.model) as model:
        generation = await read_body(request, body.generation_request)
        ids = await asyncio.to_thread(prompt_ids, model.tokenizer, generation)
        return json_response({"prompt": model.tokenizer.decode(ids)})


def _tokenized(model: ServedModel, body: TokenizeBody) -> dict[str, Any]:
    ids, tokenizer = _ids(model, body), model.tokenizer
    tokens = [{"id": each, "piece": _piece(tokenizer, each)} for each in ids] if body.with_pieces else ids
    answer: dict[str, Any] = {"tokens": tokens, "count": len(ids), "max_model_len": model.max_model_len}
    if body.return_token_strs:
        answer["token_strs"] = [tokenizer.id_to_token(each) for each in ids]
    return answer


def _ids(model: ServedModel, body: TokenizeBody) -> list[int]:
    if body.messages is not None:
        return prompt_ids(model.tokenizer, _conversation(body))
    text = body.content if body.content is not None else body.prompt
    if text is None:
        raise UsageError("give content or prompt, a text, or messages, a conversation")
    return model.tokenizer.encode(text, allowed_special=frozenset() if body.parse_special is False else "all")


def _conversation(body: TokenizeBody) -> GenerationRequest:
    chat = ChatBody(messages=body.messages, tools=body.tools, chat_template_kwargs=body.chat_template_kwargs)
    generation = chat.generation_request()
    if body.add_generation_prompt is not False or not isinstance(generation.prompt, ChatPrompt):
        return generation
    variables = {**generation.prompt.variables, "add_generation_prompt": False}
    return GenerationRequest(ChatPrompt(generation.prompt.messages, variables), generation.params, generation.tool_use)


def _piece(tokenizer: Tokenizer, token_id: int) -> str | list[int]:
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)
