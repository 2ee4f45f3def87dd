"""`/v1/fim/completions`: fill-in-the-middle as Mistral's API has it, which Continue can use. Source: its reference."""

from fastapi import APIRouter, Request, Response
from pydantic import Field

from codemill.server.aside import read_body
from codemill.server.generation import FimPrompt, GenerationRequest
from codemill.server.json_response import json_response
from codemill.server.json_route import JsonRoute
from codemill.server.openapi import STREAMING
from codemill.server.protocols.chat import ChatWriter, chat_completion
from codemill.server.protocols.sampling_body import SamplingBody, token_limit
from codemill.server.respond import respond_stream, respond_whole

router = APIRouter(route_class=JsonRoute, tags=["Fill in the middle"])


class MistralFimBody(SamplingBody):
    """Mistral's fields, and the sampling fields of the other protocols."""

    prompt: str = Field(examples=["def add(a, b):\n    return "])
    suffix: str | None = None
    random_seed: int | None = None

    def generation_request(self) -> GenerationRequest:
        """What is asked of the model. Raises UsageError."""
        seed = self.seed if self.random_seed is None else self.random_seed
        params = self.sampling_params(max(1, token_limit(self.max_tokens)), seed=seed)
        return GenerationRequest(
            FimPrompt(self.prompt, self.suffix or ""), params, priority=self.priority or 0, deadline=self.deadline
        )


@router.post("/v1/fim/completions", responses=STREAMING)
async def fim_completions(body: MistralFimBody, request: Request) -> Response:
    """Fill in the middle."""
    generation = await read_body(request, body.generation_request)
    if body.stream:
        samples = generation.params.n
        return await respond_stream(request, body.model, generation, lambda name: ChatWriter(name, samples, True))
    answer, model = await respond_whole(request, body.model, generation)
    return json_response(chat_completion(answer, model.name))
