"""`/v1/chat/completions`. Source: OpenAI's reference; `reasoning_content` and `prompt_progress` are customary."""

import json
import os
import time
from typing import Any

from fastapi import APIRouter, Request, Response

from codemill.engine.updates import Progress
from codemill.server.answer import Answer, Sample
from codemill.server.aside import read_body
from codemill.server.errors import ApiError
from codemill.server.events import (
    ArgumentsDelta,
    CallStart,
    Done,
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    Usage,
)
from codemill.server.json_response import json_bytes, json_response, sse
from codemill.server.json_route import JsonRoute
from codemill.server.openapi import STREAMING
from codemill.server.protocols.chat_body import ChatBody
from codemill.server.respond import respond_stream, respond_whole

DONE = b"data: [DONE]\n\n"
router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/v1/chat/completions", responses=STREAMING)
@router.post("/chat/completions", include_in_schema=False)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer a conversation, with tools if there are any."""
    generation = await read_body(request, body.generation_request)
    if not body.stream:
        answer, model = await respond_whole(request, body.model, generation)
        return json_response(chat_completion(answer, model.name))
    samples = generation.params.n
    return await respond_stream(
        request,
        body.model,
        generation,
        lambda name: ChatWriter(name, samples, body.includes_usage),
        every_progress=bool(body.return_progress),
    )


def chat_completion(answer: Answer, model: str) -> dict[str, Any]:
    """The whole answer as an object."""
    choices = [_choice(index, sample) for index, sample in enumerate(answer.samples)]
    head = {"id": completion_id(), "object": "chat.completion", "created": int(time.time()), "model": model}
    return {**head, "choices": choices, "usage": usage_object(answer.usage)}


class ChatWriter:
    """Writes chunks. An empty delta says that the server is alive: clients count no comments."""

    def __init__(self, model: str, num_samples: int, includes_usage: bool) -> None:
        head = {"id": completion_id(), "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
        self._head = json.dumps(head, ensure_ascii=False)[:-1].encode() + b', "choices": '
        self._num_samples = num_samples
        self._includes_usage = includes_usage

    def start(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(index, delta) for index in range(self._num_samples))

    def write(self, event: Event) -> bytes:
        if isinstance(event, TextDelta):
            return self._chunk(event.index, {"content": event.text}, logprobs=logprobs_object(event.logprobs))
        if isinstance(event, ReasoningDelta):
            return self._chunk(event.index, {"reasoning_content": event.text})
        if isinstance(event, CallStart):
            function = {"name": event.name, "arguments": ""}
            call = {"index": event.call, "id": event.id, "type": "function", "function": function}
            return self._chunk(event.index, {"tool_calls": [call]})
        if isinstance(event, ArgumentsDelta):
            call = {"index": event.call, "function": {"arguments": event.text}}
            return self._chunk(event.index, {"tool_calls": [call]})
        if isinstance(event, Finish):
            return self._chunk(event.index, {}, event.reason)
        return self._end(event.usage) if isinstance(event, Done) else b""

    def wait(self, progress: Progress | None) -> bytes:
        extra = b"" if progress is None else b', "prompt_progress": ' + json_bytes(progress_object(progress))
        return self._chunk(0, {}, extra=extra)

    def fail(self, error: ApiError) -> bytes:
        return sse(json_bytes(error.openai_body())) + DONE

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
        extra: bytes = b"",
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = b', "usage": null' if self._includes_usage else b""
        return sse(self._head + b"[" + json_bytes(choice) + b"]" + usage + extra + b"}")

    def _end(self, usage: Usage) -> bytes:
        if not self._includes_usage:
            return DONE
        return sse(self._head + b'[], "usage": ' + json_bytes(usage_object(usage)) + b"}") + DONE


def completion_id() -> str:
    return f"chatcmpl-{os.urandom(12).hex()}"


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def progress_object(progress: Progress) -> dict[str, Any]:
    """How far a prompt is; num_ahead: requests before it in the queue, null once it runs."""
    return {
        "total": progress.num_prompt_tokens,
        "processed": progress.num_computed,
        "num_ahead": progress.num_ahead,
    }


def logprobs_object(logprobs: tuple[TokenLogprob, ...] | list[TokenLogprob]) -> dict[str, Any] | None:
    """OpenAI's log-probabilities of a chat; None for none."""
    if not logprobs:
        return None
    content = [{**_logprob(each), "top_logprobs": [_logprob(top) for top in each.top]} for each in logprobs]
    return {"content": content, "refusal": None}


def _logprob(each: TokenLogprob) -> dict[str, Any]:
    return {"token": each.text, "logprob": each.logprob, "bytes": list(each.raw)}


def _choice(index: int, sample: Sample) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": sample.text, "refusal": None}
    if sample.tool_calls:
        message["content"] = sample.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
            for call in sample.tool_calls
        ]
    if sample.reasoning:
        message["reasoning_content"] = sample.reasoning
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs_object(sample.logprobs),
        "finish_reason": sample.finish_reason,
    }
