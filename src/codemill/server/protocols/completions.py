"""`/v1/completions`: raw prompts, with `suffix` fill-in-the-middle. Source: OpenAI's reference."""

import json
import os
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from codemill.engine.updates import Progress
from codemill.server.answer import Answer, Sample
from codemill.server.aside import read_body
from codemill.server.errors import ApiError
from codemill.server.events import Done, Event, Finish, TextDelta, TokenLogprob
from codemill.server.json_response import json_bytes, json_response, sse
from codemill.server.json_route import JsonRoute
from codemill.server.openapi import STREAMING
from codemill.server.protocols.chat import DONE, progress_object, usage_object
from codemill.server.protocols.completions_body import CompletionsBody
from codemill.server.respond import respond_stream, respond_whole

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/v1/completions", responses=STREAMING)
@router.post("/completions", include_in_schema=False)
async def completions(body: CompletionsBody, request: Request) -> Response:
    """Continue one prompt or several, or fill in the middle of one."""
    requests = await read_body(request, body.generation_requests)
    wants_logprobs = body.logprobs is not None
    if not body.stream:
        answer, model = await respond_whole(request, body.model, requests)
        return json_response(completion(answer, model.name, wants_logprobs))
    return await respond_stream(
        request,
        body.model,
        requests,
        lambda name: CompletionsWriter(name, body.includes_usage, wants_logprobs),
        every_progress=bool(body.return_progress),
    )


def completion(answer: Answer, model: str, wants_logprobs: bool) -> dict[str, Any]:
    """The whole answer as an object."""
    choices = [_choice(index, sample, wants_logprobs) for index, sample in enumerate(answer.samples)]
    return {**_head(model), "choices": choices, "usage": usage_object(answer.usage)}


class CompletionsWriter:
    """Writes chunks."""

    def __init__(self, model: str, includes_usage: bool, wants_logprobs: bool) -> None:
        self._head = json.dumps(_head(model), ensure_ascii=False)[:-1].encode() + b', "choices": '
        self._includes_usage = includes_usage
        self._wants_logprobs = wants_logprobs
        self._logprobs: dict[int, LegacyLogprobs] = {}

    def start(self) -> bytes:
        return b""

    def write(self, event: Event) -> bytes:
        if isinstance(event, TextDelta):
            return self._chunk(event.index, event.text, logprobs=self._logprobs_object(event))
        if isinstance(event, Finish):
            return self._chunk(event.index, "", event.reason)
        if not isinstance(event, Done):
            return b""
        if not self._includes_usage:
            return DONE
        return sse(self._head + b'[], "usage": ' + json_bytes(usage_object(event.usage)) + b"}") + DONE

    def wait(self, progress: Progress | None) -> bytes:
        extra = b"" if progress is None else b', "prompt_progress": ' + json_bytes(progress_object(progress))
        return self._chunk(0, "", extra=extra)

    def fail(self, error: ApiError) -> bytes:
        return sse(json_bytes(error.openai_body())) + DONE

    def _logprobs_object(self, event: TextDelta) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        return self._logprobs.setdefault(event.index, LegacyLogprobs()).of(event.logprobs)

    def _chunk(
        self,
        index: int,
        text: str,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
        extra: bytes = b"",
    ) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = b', "usage": null' if self._includes_usage else b""
        return sse(self._head + b"[" + json_bytes(choice) + b"]" + usage + extra + b"}")


class LegacyLogprobs:
    """Log-probabilities of one sample in the form that completions have; offsets count characters of its text."""

    def __init__(self) -> None:
        self._raw = bytearray()
        self._num_characters = 0

    def of(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Of the next tokens."""
        offsets = [self._offset(each) for each in logprobs]
        return {
            "tokens": [_token(each) for each in logprobs],
            "token_logprobs": [each.logprob for each in logprobs],
            "top_logprobs": [_top(each) for each in logprobs],
            "text_offset": offsets,
        }

    def _offset(self, each: TokenLogprob) -> int:
        """Where a token begins; one in the middle of a character begins with that."""
        offset = self._num_characters
        self._raw += each.raw
        text = self._raw.decode("utf-8", "ignore")
        if len(text.encode()) == len(self._raw) or len(self._raw) > 64:
            self._num_characters += len(text)
            self._raw.clear()
        return offset


def _token(each: TokenLogprob) -> str:
    """Its text, or as OpenAI writes bytes that are none."""
    try:
        return each.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in each.raw)


def _top(each: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens and the one that was taken; None for a token that nothing predicts."""
    if each.logprob is None:
        return None
    likeliest = {_token(top): top.logprob for top in each.top if top.logprob is not None}
    return {**likeliest, _token(each): each.logprob}


def _head(model: str) -> dict[str, Any]:
    return {
        "id": f"cmpl-{os.urandom(12).hex()}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
    }


def _choice(index: int, sample: Sample, wants_logprobs: bool) -> dict[str, Any]:
    logprobs = LegacyLogprobs().of(sample.logprobs) if wants_logprobs else None
    return {"index": index, "text": sample.text, "logprobs": logprobs, "finish_reason": sample.finish_reason}
