"""`/v1/embeddings`: the final hidden state of a text's last token, of length 1. Source: OpenAI's reference.

That is what Qwen3-Embedding models, which are the same network, are trained for
(https://arxiv.org/abs/2506.05176); of other models it is what they have, and no more than that.
"""

import asyncio
import base64
import struct
from collections.abc import Sequence
from math import hypot
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from codemill.chat.tokenizer import END_OF_TEXT, Tokenizer
from codemill.engine.outputs import RequestOutput
from codemill.engine.prompts import Prompt
from codemill.engine.sampling_params import SamplingParams
from codemill.errors import UsageError
from codemill.server.batch import AT_ONCE
from codemill.server.errors import ApiError
from codemill.server.json_list import JsonList
from codemill.server.json_response import json_response
from codemill.server.json_route import JsonRoute
from codemill.server.log import record_of
from codemill.server.openapi import JSON_OBJECT
from codemill.server.respond import Server
from codemill.server.served_model import ServedModel
from codemill.server.stream import run_unless_disconnected

PARAMS = SamplingParams(max_tokens=1, temperature=0.0, hidden_state=True, speculative=False)
MOST_INPUTS = 2048
router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


class EmbeddingsBody(BaseModel):
    """OpenAI's fields."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    input: str | JsonList[int] | JsonList[str] | JsonList[JsonList[int]] = Field(examples=["def add(a, b):"])
    encoding_format: str | None = Field(None, description="float, or base64 of 32-bit floats, the lowest byte first.")
    dimensions: int | None = Field(None, description="So many of the first numbers, brought to length 1 again.")

    def inputs(self) -> list[str | list[int]]:
        """Each text, or its ids. Raises UsageError."""
        value: Any = self.input
        is_one = isinstance(value, str) or (value and isinstance(value[0], int))
        inputs = [value] if is_one else list(value)
        if not 1 <= len(inputs) <= MOST_INPUTS:
            raise UsageError(f"input: {len(inputs)} texts; give 1 to {MOST_INPUTS}")
        return inputs


@router.post("/v1/embeddings", responses=JSON_OBJECT)
@router.post("/embeddings", include_in_schema=False)
async def embeddings(body: EmbeddingsBody, request: Request) -> Response:
    """A vector for each text."""
    if body.encoding_format not in (None, "float", "base64"):
        raise UsageError(f"encoding_format = {body.encoding_format!r}: choose float or base64")
    inputs = body.inputs()
    return await run_unless_disconnected(request, _answer(body, inputs, request))


async def _answer(body: EmbeddingsBody, inputs: Sequence[str | list[int]], request: Request) -> Response:
    server: Server = request.app.state.server
    record = record_of(request.scope)
    async with server.registry.lease(body.model) as model:
        record.model = model.name
        outputs = await _outputs(model, inputs, server.settings.max_request_seconds)
        record.prompt_tokens = count = sum(output.metrics.num_prompt_tokens for output in outputs)
        data = await asyncio.to_thread(_data, body, outputs)
        usage = {"prompt_tokens": count, "total_tokens": count}
        return json_response({"object": "list", "data": data, "model": model.name, "usage": usage})


async def _outputs(
    model: ServedModel, inputs: Sequence[str | list[int]], deadline: float | None
) -> list[RequestOutput]:
    places = asyncio.Semaphore(AT_ONCE)

    async def run(text: str | list[int]) -> RequestOutput:
        async with places:
            ids = await asyncio.to_thread(_ids, model.tokenizer, text)
            prompt = Prompt(None, tuple(ids))
            return await model.engine.generate(prompt, PARAMS, adapter=model.adapter, deadline=deadline)

    tasks = [asyncio.ensure_future(run(text)) for text in inputs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _ids(tokenizer: Tokenizer, text: str | list[int]) -> list[int]:
    """Texts end with the end of text, as in Qwen3-Embedding's own tokenizer; ids stay what they are."""
    if not isinstance(text, str):
        return text
    end = tokenizer.control_tokens.get(END_OF_TEXT)
    return tokenizer.encode(text) + ([] if end is None else [end])


def _data(body: EmbeddingsBody, outputs: Sequence[RequestOutput]) -> list[dict[str, Any]]:
    encode = _base64 if body.encoding_format == "base64" else list
    vectors = (_embedding(output, body.dimensions) for output in outputs)
    return [
        {"object": "embedding", "index": index, "embedding": encode(vector)} for index, vector in enumerate(vectors)
    ]


def _embedding(output: RequestOutput, dimensions: int | None) -> list[float]:
    """Raises UsageError for dimensions that the model does not have."""
    vector = output.hidden_state
    if vector is None:
        raise ApiError(503, "the embedding was not ready within the time that the server grants a request")
    if dimensions is not None and not 1 <= dimensions <= len(vector):
        raise UsageError(f"dimensions = {dimensions}: this model's embeddings have 1 to {len(vector)}")
    vector = vector[:dimensions]
    length = hypot(*vector) or 1.0
    return [value / length for value in vector]


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
