"""A response as an object and as a stream. Source: OpenAI's reference, and the models of its Python package."""

import os
import time
from collections.abc import Mapping
from typing import Any

from codemill.engine.updates import Progress
from codemill.server.errors import ApiError
from codemill.server.events import Done, Event, Usage
from codemill.server.json_response import json_bytes, sse
from codemill.server.protocols.chat import progress_object
from codemill.server.protocols.responses_items import Json
from codemill.server.protocols.responses_output import Output


class ResponseObject:
    """One response, to be shown in each of its states. echo: what it repeats of the request."""

    def __init__(self, model: str, echo: Mapping[str, Any]) -> None:
        head = {"id": f"resp_{os.urandom(16).hex()}", "object": "response", "created_at": int(time.time())}
        self._head = {**head, "model": model, **echo}

    def in_progress(self) -> Json:
        """As long as it is not whole."""
        return self._state("in_progress")

    def ended(self, output: Output) -> Json:
        """With its output: completed, or incomplete where that was cut off."""
        usage = usage_object(output.usage)
        if output.reason == "length":
            details = {"reason": "max_output_tokens"}
            return self._state("incomplete", output=output.objects(), usage=usage, incomplete_details=details)
        now = int(time.time())
        return self._state("completed", output=output.objects(), usage=usage, completed_at=now)

    def failed(self, output: Output, error: ApiError) -> Json:
        """With what there is of its output."""
        return self._state("failed", output=output.objects(), error=error_object(error))

    def _state(self, status: str, **values: Any) -> Json:
        nothing: Json = {"output": [], "usage": None, "error": None, "incomplete_details": None, "completed_at": None}
        return {**self._head, "status": status, **nothing, **values}


class ResponseWriter:
    """Writes the events of a response. Another `response.in_progress` says that the server is alive."""

    def __init__(self, response: ResponseObject, output: Output) -> None:
        self._response = response
        self._output = output
        self._number = 0

    def start(self) -> bytes:
        return b"".join(self._whole(kind, self._response.in_progress()) for kind in ("created", "in_progress"))

    def write(self, event: Event) -> bytes:
        chunk = b"".join(self._event(each) for each in self._output.add(event))
        if not isinstance(event, Done):
            return chunk
        ended = self._response.ended(self._output)
        return chunk + self._whole(ended["status"], ended)

    def wait(self, progress: Progress | None) -> bytes:
        extra = {} if progress is None else {"prompt_progress": progress_object(progress)}
        return self._whole("in_progress", self._response.in_progress(), **extra)

    def fail(self, error: ApiError) -> bytes:
        return self._whole("failed", self._response.failed(self._output, error))

    def _whole(self, kind: str, response: Json, **extra: Any) -> bytes:
        return self._event({"type": f"response.{kind}", "response": response, **extra})

    def _event(self, event: Json) -> bytes:
        numbered = {**event, "sequence_number": self._number}
        self._number += 1
        return sse(json_bytes(numbered), event["type"])


def usage_object(usage: Usage) -> Json:
    """The usage of a response."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def error_object(error: ApiError) -> Json:
    """An error under a code that clients know: codex gives up, makes room or tries again by it."""
    if error.code == "context_length_exceeded":
        return {"code": error.code, "message": error.message}
    if error.status == 429:
        seconds = error.headers.get("Retry-After", "1")
        return {"code": "rate_limit_exceeded", "message": f"{error.message} Please try again in {seconds}s."}
    return {"code": "server_error" if error.status >= 500 else "invalid_prompt", "message": error.message}
