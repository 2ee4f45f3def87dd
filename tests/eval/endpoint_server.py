"""A server that answers as a test says, and requests to it."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from codemill.eval.endpoint import EndpointGenerator
from codemill.eval.endpoint_client import Endpoint
from codemill.eval.generation import Generated, GenerationRequest, Sampling
from codemill.eval.suite import Prompt

KEY = "sk-secret-0123456789"
GOOD = {"choices": [{"text": " 42", "finish_reason": "stop"}]}


@dataclass
class Reply:
    """What the server does with a request."""

    body: bytes = json.dumps(GOOD).encode()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None  # what Content-Length claims
    delay: float = 0.0
    drip: float = 0.0  # seconds between bytes


@dataclass
class Server:
    """`replies` are given one after the other, and the last of them from then on."""

    url: str
    replies: list[Reply] = field(default_factory=lambda: [Reply()])
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)
    choose: Callable[[dict[str, Any]], Reply] | None = None

    def next_reply(self, payload: dict[str, Any]) -> Reply:
        if self.choose is not None:
            return self.choose(payload)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@contextmanager
def serving() -> Iterator[Server]:
    found = Server("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.requests.append(payload)
            found.paths.append(self.path)
            found.headers.append(self.headers)
            reply = found.next_reply(payload)
            time.sleep(reply.delay)
            with suppress(OSError):  # the client goes away, as it should from a slow server
                self.send(reply)

        def send(self, reply: Reply) -> None:
            if reply.status == 0:  # no HTTP at all
                self.connection.sendall(reply.body)
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(reply.status)
            length = len(reply.body) if reply.length is None else reply.length
            for name, value in {"Content-Length": str(length), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if not reply.drip:
                self.wfile.write(reply.body)
                return
            for byte in reply.body:
                self.wfile.write(bytes([byte]))
                time.sleep(reply.drip)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    found.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    yield found
    httpd.shutdown()
    httpd.server_close()


def request(prompt: Prompt | None = None, index: int = 0) -> GenerationRequest:
    return GenerationRequest("T/0", index, prompt or Prompt(text=f"prompt {index}", max_tokens=9), seed=100 + index)


def generator(server: Server, sampling: Sampling = Sampling(), **settings: Any) -> EndpointGenerator:  # noqa: B008
    own = {key: settings.pop(key) for key in ("concurrency", "fim") if key in settings}
    settings = {"api_key": KEY, "backoff": 0.01, "request_timeout": 0.5, **settings}
    return EndpointGenerator(Endpoint(server.url, "tiny", **settings), sampling, **own)


def ask(server: Server, prompt: Prompt | None = None, **settings: Any) -> Generated:
    (result,) = generator(server, **settings).generate([request(prompt)])
    return result
