"""`/infill`: completion in an editor, as llama.vim and llama.vscode ask for it. Source: llama.cpp's server."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from codemill.engine.outputs import RequestMetrics
from codemill.engine.updates import Progress
from codemill.server.answer import Answer
from codemill.server.aside import read_body
from codemill.server.errors import ApiError
from codemill.server.events import Done, Event, Finish, TextDelta, Usage
from codemill.server.generation import FimPrompt, GenerationRequest
from codemill.server.json_list import JsonList
from codemill.server.json_response import json_bytes, json_response, sse
from codemill.server.json_route import JsonRoute
from codemill.server.openapi import STREAMING
from codemill.server.protocols.sampling_body import SamplingBody, token_limit
from codemill.server.respond import respond_stream, respond_whole
from codemill.server.shape import LineLimits, Shape

router = APIRouter(route_class=JsonRoute, tags=["Fill in the middle"])


class ExtraText(BaseModel):
    """A piece of another file."""

    model_config = ConfigDict(extra="ignore")

    filename: str | None = None
    text: str | None = None


class InfillBody(SamplingBody):
    """llama.cpp's fields. Without a temperature the likeliest token is taken, so that an editor gets the same again."""

    input_prefix: str | None = Field(None, description="The lines before the cursor's.", examples=["def add(a, b):\n"])
    input_suffix: str | None = Field(
        None, description="All that follows the cursor.", examples=["\n\nprint(add(1, 2))"]
    )
    input_extra: JsonList[ExtraText] | None = Field(None, description="Pieces of other files, the most important last.")
    prompt: str | None = Field(None, description="The cursor's line up to the cursor.", examples=["    return "])
    n_predict: int | None = Field(None, description="0 only computes the prompt, so that the next one begins faster.")
    n_indent: int | None = None
    n_cmpl: int | None = None
    t_max_predict_ms: float | None = Field(None, description="After that the completion ends with its line.")
    repeat_penalty: float | None = None
    response_fields: JsonList[str] | None = Field(None, description="Fields of the answer, inner ones as outer/inner.")

    def generation_request(self) -> GenerationRequest:
        """What is asked of the model. Raises UsageError."""
        limit = token_limit(self.n_predict, self.max_tokens)
        asked = {"temperature": 0.0 if self.temperature is None else None, "repetition_penalty": self.repeat_penalty}
        values: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        params = self.sampling_params(max(1, limit), n=self.n_cmpl or self.n, **values)
        shape = Shape(prompt_only=limit == 0, line_limits=self._line_limits)
        return GenerationRequest(self._prompt, params, priority=self.priority or 0, deadline=self.deadline, shape=shape)

    @property
    def _prompt(self) -> FimPrompt:
        files = tuple((extra.filename or "tmp", extra.text or "") for extra in self.input_extra or ())
        prefix = (self.input_prefix or "") + (self.prompt or "")
        return FimPrompt(prefix, self.input_suffix or "", context_files=files, fits=True)

    @property
    def _line_limits(self) -> LineLimits | None:
        milliseconds, indent = self.t_max_predict_ms or 0, self.n_indent or 0
        if milliseconds <= 0 and indent <= 0:
            return None
        return LineLimits(milliseconds / 1000 if milliseconds > 0 else None, max(0, indent))


@router.post("/infill", responses=STREAMING)
async def infill(body: InfillBody, request: Request) -> Response:
    """Fill in what is missing at the cursor. A prompt that is too long is cut: far files first, then far lines."""
    generation = await read_body(request, body.generation_request)
    if body.stream:
        return await respond_stream(
            request, body.model, generation, lambda name: InfillWriter(name, body.response_fields)
        )
    answer, model = await respond_whole(request, body.model, generation)
    results = [chosen_fields(each, body.response_fields) for each in infill_results(answer, model.name)]
    return json_response(results if body.n_cmpl and body.n_cmpl > 1 else results[0])


def infill_results(answer: Answer, model: str) -> list[dict[str, Any]]:
    """The whole answer, an object for each sample."""
    samples = answer.samples
    return [
        {
            **_result(index, sample.text, Finish(index, sample.finish_reason, sample.stop_sequence), model),
            **_counts(answer.usage, answer.metrics, len(samples)),
            "has_new_line": "\n" in sample.text,
        }
        for index, sample in enumerate(samples)
    ]


class InfillWriter:
    """Writes pieces; the last one of a sample has its counts."""

    def __init__(self, model: str, response_fields: Sequence[str] | None) -> None:
        self._model = model
        self._fields = response_fields
        self._ends: list[Finish] = []
        self._has_new_line: dict[int, bool] = {}

    def start(self) -> bytes:
        return b""

    def write(self, event: Event) -> bytes:
        if isinstance(event, TextDelta):
            self._has_new_line[event.index] = "\n" in event.text or self._has_new_line.get(event.index, False)
            return _piece(event.index, event.text)
        if isinstance(event, Finish):  # how long it took is known when all are done
            self._ends.append(event)
        return b"".join(self._end(end, event) for end in self._ends) if isinstance(event, Done) else b""

    def wait(self, progress: Progress | None) -> bytes:
        return _piece(0, "")

    def fail(self, error: ApiError) -> bytes:
        return sse(json_bytes(error.openai_body()))

    def _end(self, end: Finish, done: Done) -> bytes:
        result = {
            **_result(end.index, "", end, self._model),
            **_counts(done.usage, done.metrics, len(self._ends)),
            "has_new_line": self._has_new_line.get(end.index, False),
        }
        return sse(json_bytes(chosen_fields(result, self._fields)))


def chosen_fields(result: Mapping[str, Any], fields: Sequence[str] | None) -> dict[str, Any]:
    """The fields that were asked for, each under the name that it was asked by; all if none were."""
    if not fields:
        return dict(result)
    chosen = {}
    for field in fields:
        value: Any = result
        for name in field.split("/"):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            chosen[field] = value
    return chosen


def _piece(index: int, text: str) -> bytes:
    return sse(json_bytes({"index": index, "content": text, "stop": False}))


def _result(index: int, text: str, end: Finish, model: str) -> dict[str, Any]:
    kind = "word" if end.stop_sequence else "eos" if end.reason == "stop" else "limit"
    return {
        "index": index,
        "content": text,
        "stop": True,
        "model": model,
        "stop_type": kind,
        "stopping_word": end.stop_sequence or "",
        "truncated": False,  # the context is never moved on while an answer is made
    }


def _counts(usage: Usage, metrics: RequestMetrics | None, num_samples: int) -> dict[str, Any]:
    """Of one sample of several its share."""
    num_predicted = usage.completion_tokens // max(1, num_samples)
    return {
        "tokens_predicted": num_predicted,
        "tokens_evaluated": usage.prompt_tokens,
        "tokens_cached": usage.cached_tokens,
        "timings": _timings(usage, metrics, num_predicted),
    }


def _timings(usage: Usage, metrics: RequestMetrics | None, num_predicted: int) -> dict[str, Any]:
    prompt_ms = predicted_ms = 0.0
    if metrics is not None:
        prompt_ms = 1000 * max(0.0, metrics.first_token_seconds - metrics.queue_seconds)
        predicted_ms = 1000 * (metrics.total_seconds - metrics.first_token_seconds)
    return {
        "cache_n": usage.cached_tokens,
        **_speed("prompt", usage.prompt_tokens - usage.cached_tokens, prompt_ms),
        **_speed("predicted", num_predicted, predicted_ms),
    }


def _speed(kind: str, num_tokens: int, milliseconds: float) -> dict[str, Any]:
    return {
        f"{kind}_n": num_tokens,
        f"{kind}_ms": milliseconds,
        f"{kind}_per_token_ms": milliseconds / num_tokens if num_tokens else 0.0,
        f"{kind}_per_second": 1000 * num_tokens / milliseconds if milliseconds else 0.0,
    }
