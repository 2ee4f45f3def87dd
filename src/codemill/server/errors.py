"""What goes wrong with a request, as clients of each protocol expect to be told."""

from collections.abc import Mapping
from typing import Any

from codemill.engine.admission import QueueFull
from codemill.engine.prompts import PromptTooLong
from codemill.errors import UsageError

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """An answer with an HTTP status of 400 or more. `message` is one line; the rest is as in OpenAI's error object.

    anthropic_message: what Anthropic's clients are told instead, where they look for words of their own.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        type: str | None = None,
        headers: Mapping[str, str] | None = None,
        anthropic_message: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = " ".join(message.split())
        self.code = code
        self.param = param
        self.type = type or _openai_type(status)
        self.headers = dict(headers or {})
        self.anthropic_message = anthropic_message or self.message

    def openai_body(self) -> dict[str, Any]:
        """As OpenAI's API and everything modelled on it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def anthropic_body(self) -> dict[str, Any]:
        """As Anthropic's API."""
        kind = ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.anthropic_message}}

    def body(self, path: str) -> dict[str, Any]:
        """In the form of the protocol that the path belongs to."""
        return self.anthropic_body() if path.startswith("/v1/messages") else self.openai_body()


def api_error_of(error: Exception) -> ApiError:
    """What a client is told about an exception of ours, or of one that nobody expected."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLong):
        return _prompt_too_long(error)
    if isinstance(error, QueueFull):
        headers = {"Retry-After": str(error.retry_after)}
        return ApiError(429, f"The server is busy: {error}", code="rate_limit_exceeded", headers=headers)
    if isinstance(error, UsageError):
        return ApiError(400, str(error))
    # What the engine says of itself may be told; what nobody foresaw stays in the log.
    known = type(error).__module__.startswith("codemill.")
    return ApiError(500, str(error) if known else "The server made a mistake; its log says more.")


def _prompt_too_long(error: PromptTooLong) -> ApiError:
    """In the words that agents look for to make a conversation shorter. Claude Code reads both numbers."""
    message = (
        f"This model's maximum context length is {error.max_model_len} tokens, the answer included. However, "
        f"your messages resulted in {error.num_tokens} tokens. Please reduce the length of the messages."
    )
    maximum = min(error.max_model_len, error.num_tokens - 1)  # a prompt as long as the context has no room either
    anthropic = (
        f"prompt is too long: {error.num_tokens} tokens > {maximum} maximum "
        f"(this model's maximum context length is {error.max_model_len} tokens, the answer included)"
    )
    return ApiError(400, message, "context_length_exceeded", "messages", anthropic_message=anthropic)


def _openai_type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
