"""HTTP to an OpenAI-compatible server that may be busy, slow, broken or wrong: what is worth another try gets one."""

import email.utils
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, TypeVar

from codemill.errors import CodemillError, UsageError

T = TypeVar("T")

MAX_BODY = 64 << 20  # bytes; more is no answer
LONGEST_WAIT = 60.0  # seconds between two tries
LONGEST_RETRY_AFTER = 300.0  # seconds that a server may ask for
TRIES_WHEN_SLOW = 2  # a try that ran into the time limit has cost enough
_RETRIED = (408, 409, 425, 429)  # besides all from 500 on
_FATAL = (401, 402, 403, 404, 405, 407)


class Unanswered(Exception):
    """One request has no answer and will not get one: the reason in one line. Others may still succeed."""


class Stopped(Exception):
    """The run ended while a request waited for its next try."""


class _Transient(Exception):
    """A try that failed in a way that the next one may not."""

    def __init__(self, reason: str, retry_after: float = 0.0, slow: bool = False, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.retry_after, self.slow, self.unreachable = retry_after, slow, unreachable


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server. url: with or without `/v1`. request_timeout: seconds for one try. retries: further
    tries of a request. backoff: seconds before the first of them, doubled for each."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    request_timeout: float = 120.0
    retries: int = 5
    backoff: float = 1.0

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--endpoint {self.shown}: give a URL such as http://127.0.0.1:8000/v1")
        if not self.model.strip():
            raise UsageError("--endpoint needs --model NAME: the server may have several")
        if parts.username is not None or parts.password is not None:
            raise UsageError("--endpoint: give the key as OPENAI_API_KEY, not in the URL")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise UsageError("the API key has characters that no key has: check OPENAI_API_KEY")

    @property
    def shown(self) -> str:
        """The URL without what may be secret in it."""
        parts = urllib.parse.urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def address(self, path: str) -> str:
        """The URL of an operation such as `completions`."""
        parts = urllib.parse.urlsplit(self.url)
        base = parts.path.rstrip("/") or "/v1"
        return urllib.parse.urlunsplit(parts._replace(path=f"{base}/{path}", fragment=""))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST loses its body, and a key must not travel to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class EndpointClient:
    """Posts requests to one endpoint; safe to use from several threads. `stop` ends all waiting."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._opener = urllib.request.build_opener(_NoRedirects, *_without_proxy(endpoint.url))
        self._stopped = threading.Event()
        self._reached = False

    def stop(self) -> None:
        self._stopped.set()

    def post(self, path: str, payload: dict[str, Any], parse: Callable[[dict[str, Any]], T]) -> T:
        """What `parse` makes of the server's answer; a ValueError of it means that the answer is garbage.

        Busy and broken servers, time limits, lost connections and garbage are tried again, after waits that double,
        with jitter, or as long as Retry-After says. Raises Unanswered when the tries are used up or the server refuses
        this request, Stopped after `stop`, and CodemillError for what would refuse every request: a wrong URL, key or
        model.
        """
        tries = slow = 0
        while not self._stopped.is_set():
            tries += 1
            try:
                return self._try(path, payload, parse)
            except _Transient as error:
                slow += error.slow
                if tries > self.endpoint.retries or slow >= TRIES_WHEN_SLOW:
                    raise self._give_up(error, tries) from None
                self._stopped.wait(self._pause(tries, error.retry_after))
        raise Stopped

    def _give_up(self, error: _Transient, tries: int) -> Exception:
        reason = f"{error} (tried {tries} times)" if tries > 1 else str(error)
        if error.unreachable and not self._reached:
            return CodemillError(f"{reason}: is the server running, and is --endpoint right?")
        return Unanswered(reason)

    def _pause(self, tries: int, retry_after: float) -> float:
        doubled = min(LONGEST_WAIT, self.endpoint.backoff * 2 ** (tries - 1))
        # At least half of it, so that many clients that failed together do not come back together.
        return max(retry_after, doubled * random.uniform(0.5, 1.0))

    def _try(self, path: str, payload: dict[str, Any], parse: Callable[[dict[str, Any]], T]) -> T:
        limit = self.endpoint.request_timeout
        request = urllib.request.Request(
            self.endpoint.address(path), json.dumps(payload).encode("ascii"), self._headers(), method="POST"
        )
        try:
            with self._opener.open(request, timeout=limit) as response:
                self._reached = True
                body = _read(response, limit)
            return parse(_as_object(body))
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except TimeoutError:
            raise _Transient(f"no answer within {limit:g} s", slow=True) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _Transient(f"no answer within {limit:g} s", slow=True) from None
            reason = f"cannot reach {self.endpoint.shown}: {_line(error.reason)}"
            raise _Transient(reason, unreachable=True) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Transient(f"the connection broke: {_line(error)}") from None
        except (ValueError, RecursionError) as error:
            raise _Transient(f"the server's answer is garbage: {self._clean(_line(error))}") from None

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "User-Agent": "codemill"}
        if self.endpoint.api_key:
            headers["Authorization"] = f"Bearer {self.endpoint.api_key}"
        return headers

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """What an answer with an error status means for the request, or for the run."""
        self._reached = True
        reason = f"the server answered {error.code}"
        if message := self._clean(_error_message(error)):
            reason += f" ({message})"
        if error.code in _RETRIED or error.code >= 500:
            return _Transient(reason, _retry_after(error.headers.get("Retry-After")))
        if error.code in _FATAL or error.code < 400:
            return CodemillError(f"{self.endpoint.shown}: {reason}: {_advice(error.code)}")
        return Unanswered(reason)

    def _clean(self, text: str) -> str:
        """One short line, in which the key does not appear even if the server repeats it."""
        key = self.endpoint.api_key
        return " ".join((text.replace(key, "***") if key else text).split())[:300]


def _without_proxy(url: str) -> tuple[urllib.request.ProxyHandler, ...]:
    """This machine is never behind its own proxy."""
    host = urllib.parse.urlsplit(url).hostname or ""
    is_local = host in ("localhost", "::1") or host.startswith("127.")
    return (urllib.request.ProxyHandler({}),) if is_local else ()


def _read(response: IO[bytes], limit: float) -> bytes:
    """The body, within `limit` seconds however slowly it drips."""
    deadline = time.monotonic() + limit
    blocks, size = [], 0
    while block := response.read1(1 << 16):  # type: ignore[attr-defined]
        blocks.append(block)
        size += len(block)
        if size > MAX_BODY:
            raise ValueError(f"more than {MAX_BODY >> 20} MiB")
        if time.monotonic() > deadline:
            raise TimeoutError
    if getattr(response, "length", 0):  # of what Content-Length promised, still to come
        raise ConnectionError("the answer is cut short")
    return b"".join(blocks)


def _as_object(body: bytes) -> dict[str, Any]:
    value = json.loads(body)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def _error_message(error: urllib.error.HTTPError) -> str:
    """What the server says: OpenAI's `error.message`, FastAPI's `detail`, or the text itself."""
    try:
        text = error.read(1 << 16).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()
    if isinstance(value, dict):
        found = value.get("error") or value.get("message") or value.get("detail") or value
        return str(found.get("message") or found) if isinstance(found, dict) else str(found)
    return text.strip()


def _retry_after(header: str | None) -> float:
    """Seconds that the server asks to wait: a number, or a date; 0 for none and for nonsense."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if seconds == seconds else 0.0


def _advice(code: int) -> str:
    if code in (401, 403, 407):
        return "check the key in OPENAI_API_KEY"
    if code == 402:
        return "the account has no credit"
    if code < 400:
        return "it redirects: give the URL that it redirects to"
    return "check --endpoint and --model, and whether the server has this API (--style base, fim or chat)"


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
