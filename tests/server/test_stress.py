"""Clients that leave at the worst moment, and engines that fail: whatever happens, nothing is left over."""

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from codemill.engine.scripted import ScriptedEngine
from codemill.errors import CodemillError
from codemill.server.registry import Registry
from codemill.server.settings import ServerSettings
from server.events import read_chunks

CHAT = "/v1/chat/completions"
LONG = "a b c d " * 2000


def body(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


class House:
    """A server, and a look at what it holds."""

    def __init__(
        self, serve: Any, script: Callable[[str], str], settings: ServerSettings | None = None, **options: Any
    ):
        self.engine = ScriptedEngine(script, **options)
        self.registry = Registry.of(self.engine)
        self.client: httpx.Client = serve(registry=self.registry, settings=settings)

    @property
    def address(self) -> tuple[str, int]:
        return self.client.base_url.host, self.client.base_url.port or 80

    def holdings(self) -> dict[str, int]:
        return {
            "inboxes": len(self.engine._inboxes),
            "live": len(self.engine._live),
            "waiting": len(self.engine._waiting),
            "leases": sum(entry.num_leases for entry in self.registry._entries),
        }

    def wait_until(self, condition: Callable[[dict[str, int]], bool], seconds: float = 5.0) -> None:
        until = time.monotonic() + seconds
        while not condition(self.holdings()):
            assert time.monotonic() < until, self.holdings()
            time.sleep(0.005)

    def check_empty(self) -> None:
        """All is given back, and the server answers."""
        self.wait_until(lambda held: not any(held.values()))
        answer = self.client.post(CHAT, json=body("after", max_tokens=1))
        assert answer.status_code == 200
        self.wait_until(lambda held: not any(held.values()))

    def send(self, request: dict[str, Any]) -> socket.socket:
        """A request whose answer nobody reads as long as the socket is not read."""
        data = json.dumps(request).encode()
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(self.address)
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n".encode())
        connection.sendall(data)
        return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_leaves_before_the_first_token(serve, stream):
    house = House(serve, lambda prompt: LONG, prefill_seconds=20.0)
    connection = house.send(body(stream=stream))
    house.wait_until(lambda held: held["live"] == 1)
    connection.close()
    house.wait_until(lambda held: not any(held.values()))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_leaves_in_the_queue(serve, stream):
    house = House(serve, lambda prompt: LONG, max_num_seqs=1, token_seconds=0.01)
    first = house.send(body(stream=True))
    house.wait_until(lambda held: held["live"] == 1)
    second = house.send(body(stream=stream))
    house.wait_until(lambda held: held["waiting"] == 1)
    second.close()
    house.wait_until(lambda held: held == {"inboxes": 1, "live": 1, "waiting": 0, "leases": 1})
    first.close()
    house.check_empty()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 4])
def test_a_client_leaves_in_the_middle(serve, stream, n):
    house = House(serve, lambda prompt: LONG, token_seconds=0.01)
    connection = house.send(body(stream=stream, n=n))
    house.wait_until(lambda held: held["live"] == 1)
    if stream:
        received = b""
        while received.count(b"data: ") < n + 3:
            received += connection.recv(4096)
    connection.close()
    house.check_empty()


def test_a_client_resets_the_connection(serve):
    house = House(serve, lambda prompt: LONG, token_seconds=0.001)
    for _ in range(10):
        connection = house.send(body(stream=True))
        connection.recv(100)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.close()
    house.check_empty()


def test_a_client_that_shuts_only_its_half_gets_its_answer_or_is_let_go(serve):
    house = House(serve, lambda prompt: "Hello!", prefill_seconds=0.2)
    connection = house.send(body(stream=True))
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(4096):
        pass
    house.check_empty()


def test_a_client_that_does_not_read_is_let_go(serve):
    house = House(serve, lambda prompt: LONG * 4, settings=ServerSettings(write_seconds=0.5), max_model_len=1 << 20)
    connection = house.send(body(stream=True))
    house.wait_until(lambda held: held["live"] == 1 or held["leases"] == 1)
    house.wait_until(lambda held: not any(held.values()), seconds=20)
    connection.close()
    house.check_empty()


def test_others_are_served_beside_one_that_does_not_read(serve):
    house = House(serve, lambda prompt: LONG if "long" in prompt else "Hello!", token_seconds=0.0005)
    connection = house.send(body("long", stream=True))
    house.wait_until(lambda held: held["live"] == 1)
    for _ in range(5):
        begin = time.monotonic()
        assert house.client.post(CHAT, json=body()).json()["choices"][0]["message"]["content"] == "Hello!"
        assert time.monotonic() - begin < 1.0
    connection.close()
    house.check_empty()


def failing(prompt: str) -> str:
    if "fail" in prompt:
        raise CodemillError("a step of the engine failed: out of memory")
    return "Hello!"


def test_the_engine_fails(serve):
    house = House(serve, failing)
    answer = house.client.post(CHAT, json=body("fail"))
    assert answer.status_code == 500
    assert "out of memory" in answer.json()["error"]["message"]
    house.check_empty()


def test_the_engine_fails_in_mid_stream(serve):
    house = House(serve, failing)
    with house.client.stream("POST", CHAT, json=body("fail", stream=True)) as response:
        assert response.status_code == 200
        chunks = list(read_chunks(response))
    assert "out of memory" in chunks[-1]["error"]["message"]
    house.check_empty()


def test_a_script_that_nobody_foresaw_to_fail(serve):
    """An error that is no CodemillError must not leave its request waiting for ever."""

    def script(prompt: str) -> str:
        if "fail" in prompt:
            raise ZeroDivisionError("division by zero")
        return "Hello!"

    house = House(serve, script)
    answer = house.client.post(CHAT, json=body("fail"), timeout=5)
    assert answer.status_code == 500
    assert "ZeroDivisionError" in answer.json()["error"]["message"]
    house.check_empty()


@pytest.mark.parametrize("stream", [True, False])
def test_many_requests_with_several_samples(serve, stream):
    house = House(serve, lambda prompt: "one two three", max_num_seqs=8)
    results: list[list[str]] = []
    url = str(house.client.base_url).rstrip("/") + CHAT

    def ask() -> None:
        request = body(stream=stream, n=8)
        if not stream:
            choices = httpx.post(url, json=request, timeout=60).json()["choices"]
            texts = [choice["message"]["content"] for choice in choices]
        else:
            texts = [""] * 8
            with httpx.stream("POST", url, json=request, timeout=60) as response:
                for chunk in read_chunks(response):
                    for choice in chunk["choices"]:
                        texts[choice["index"]] += choice["delta"].get("content") or ""
        results.append(texts)

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [["one two three"] * 8] * 32
    house.check_empty()


def test_a_storm_of_clients_that_leave(serve):
    house = House(serve, lambda prompt: LONG, max_num_seqs=4, max_waiting=1000, token_seconds=0.001)
    connections = [house.send(body(str(number), stream=number % 2 == 0)) for number in range(60)]
    house.wait_until(lambda held: held["live"] >= 4)
    for connection in connections:
        connection.close()
    house.check_empty()
