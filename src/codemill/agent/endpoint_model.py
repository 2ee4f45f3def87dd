"""A model behind an OpenAI-compatible server: ours, or any other."""

import json
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from codemill.agent.endpoint_answer import EndpointAnswer, TryLater, raise_error
from codemill.agent.events import Listener, Notice
from codemill.agent.model import Message, Reply
from codemill.agent.stops import Interrupted
from codemill.errors import CodemillError, UsageError

if TYPE_CHECKING:
    import httpx

MAX_TRIES = 6
LONGEST_PAUSE = 60.0
# A CPU takes minutes for a long prompt; our server says something all that time, others may not.
SILENCE_SECONDS = 900.0


@dataclass(frozen=True)
class Endpoint:
    """Where the server is. url: with or without `/v1`. parameters: further fields of requests, such as temperature."""

    url: str
    model: str = ""
    api_key: str | None = field(default=None, repr=False)
    context_length: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"endpoint {self.url!r}: give a URL such as http://127.0.0.1:8000/v1")

    @property
    def base(self) -> str:
        """The URL that the operations' names follow."""
        url = self.url.rstrip("/")
        return url if urlsplit(url).path else f"{url}/v1"


class EndpointModel:
    """Asks a server for chat completions, as a stream. What may be only for now is tried again."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._card: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self.__client: httpx.Client | None = None

    @property
    def name(self) -> str:
        return self._endpoint.model or str(self._model_card.get("id", "model"))

    @property
    def context_length(self) -> int | None:
        """What the endpoint was given, or what the server says of the model."""
        if self._endpoint.context_length is not None:
            return self._endpoint.context_length
        for key in ("max_model_len", "context_length", "context_window", "n_ctx"):
            if isinstance(self._model_card.get(key), int):
                return int(self._model_card[key])
        return None

    @property
    def others(self) -> list[str]:
        """The names of all models of the server. Raises CodemillError if it does not tell them."""
        import httpx

        try:
            found = self._client.get(f"{self._endpoint.base}/models", timeout=10.0).raise_for_status().json()
            return [str(card["id"]) for card in found["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise CodemillError(f"{self._endpoint.url} does not list its models ({type(error).__name__})") from error

    def another(self, name: str) -> "EndpointModel":
        """Another model of the server."""
        return EndpointModel(replace(self._endpoint, model=name))

    def reply(
        self, messages: Sequence[Message], tools: Sequence[Message], listen: Listener, cancel: threading.Event
    ) -> Reply:
        body = {
            **self._endpoint.parameters,
            "model": self.name,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,  # of our server; others ignore it
        }
        if tools:
            body["tools"] = list(tools)
        for attempt in range(MAX_TRIES):
            try:
                return self._try(body, tools, listen, cancel)
            except TryLater as later:
                if attempt + 1 == MAX_TRIES:
                    raise CodemillError(f"{self._endpoint.url}: {later}; tried {MAX_TRIES} times") from later
                pause = min(LONGEST_PAUSE, later.seconds or 0.5 * 2**attempt)
                listen(Notice(f"{later}: next try in {pause:.2g} s"))
                if cancel.wait(pause):
                    raise Interrupted("stopped") from None
        raise AssertionError

    @property
    def _client(self) -> "httpx.Client":
        if self.__client is None:
            import httpx

            key = self._endpoint.api_key
            headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
            timeout = httpx.Timeout(SILENCE_SECONDS, connect=10.0)
            self.__client = httpx.Client(headers=headers, timeout=timeout)
        return self.__client

    @property
    def _model_card(self) -> dict[str, Any]:
        """What the server says of the model, or of its first one."""
        with self._lock:
            if self._card is None:
                self._card = self._ask_for_card()
            return self._card

    def _ask_for_card(self) -> dict[str, Any]:
        import httpx

        try:
            found = self._client.get(f"{self._endpoint.base}/models", timeout=10.0).json()
            cards = [card for card in found["data"] if isinstance(card, dict)]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return {}
        named = [card for card in cards if card.get("id") == self._endpoint.model]
        return next(iter(named or ([] if self._endpoint.model else cards)), {})

    def _try(
        self, body: Mapping[str, Any], tools: Sequence[Message], listen: Listener, cancel: threading.Event
    ) -> Reply:
        answer = EndpointAnswer(tools)
        with closing(self._stream(body, cancel)) as chunks:  # what a listener raises is no matter of the connection
            for chunk in chunks:
                if not chunk:
                    answer.end()
                for event in answer.take(chunk):
                    listen(event)
        return answer.reply()

    def _stream(self, body: Mapping[str, Any], cancel: threading.Event) -> Generator[dict[str, Any]]:
        """What the server sends; its end is told by an empty object. Raises TryLater if that may work the next time."""
        import httpx

        content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")  # halves of characters are not sent
        try:
            with self._client.stream("POST", f"{self._endpoint.base}/chat/completions", content=content) as response:
                if response.status_code != 200:
                    _raise_status(response)
                with _ClosedOnCancel(response, cancel):
                    yield from _chunks(response)
        except httpx.ConnectError as error:
            raise TryLater(f"no connection to {self._endpoint.url}") from error
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            if cancel.is_set():
                raise Interrupted("stopped") from None
            raise TryLater(f"the connection broke ({type(error).__name__})") from error
        if cancel.is_set():
            raise Interrupted("stopped")


class _ClosedOnCancel:
    """A context in which the response is closed as soon as `cancel` is set, though a read waits for it."""

    def __init__(self, response: "httpx.Response", cancel: threading.Event) -> None:
        self._response = response
        self._cancel = cancel
        self._done = threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, name="codemill-cancel", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            if self._cancel.is_set():
                _shut_down(self._response)
                return


def _shut_down(response: "httpx.Response") -> None:
    """Wake a thread that reads from the response's socket."""
    import socket

    stream = response.extensions.get("network_stream")
    found = stream.get_extra_info("socket") if stream is not None else None
    if found is not None:
        try:
            found.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is closed already


def _chunks(response: "httpx.Response") -> Iterator[dict[str, Any]]:
    """The JSON objects of an event stream, and an empty one for `[DONE]`."""
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            yield {}
            return
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            raise TryLater("the server sent an event that is no JSON") from None
        if isinstance(chunk, dict):
            yield chunk


def _raise_status(response: "httpx.Response") -> None:
    response.read()
    try:
        error = response.json().get("error")
    except (ValueError, AttributeError):
        error = None
    told = error if isinstance(error, Mapping) else {"message": str(error or response.text[:300] or "no reason given")}
    raise_error(told, response.status_code, _retry_after(response))


def _retry_after(response: "httpx.Response") -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:  # a date
        return 0.0
