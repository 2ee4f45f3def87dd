"""What a client is told when a request is refused."""

from collections.abc import Mapping


class ApiError(Exception):
    """A request is answered with an error. message: one line that says what to do; code, param: as in OpenAI's."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        type: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.type = type
        self.headers = dict(headers or {})
