"""A soak: many clients for minutes; some leave, some send nonsense, some read slowly, and all check their answers.

    python benchmarks/server_soak.py [--seconds 300] [--clients 64] [--model embedded] [--output NAME.json]

The server runs in a process of its own. Each prompt has a marker that no other has; the scripted model repeats it, a
real one is made to by a grammar. So an answer that is lost, cut or of another is noticed. In the end nothing may be
left in the server: no request, lease, task, open file, and no memory that was not there after the first fifth.
"""

import argparse
import asyncio
import json
import random
import secrets
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from server_client import Stream, post
from server_process import ServerProcess, scripted, serving
from server_protocols import PROTOCOLS, Protocol, StreamedError

MALFORMED = (
    *(
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"messages": 3}',
        b'{"messages": [{"role": "user"}], "n": "x"}',
        b"\xff\xfe",
    ),
    *(b'{"messages": []}', b'{"messages": [{"role": "king", "content": "x"}]}', b"[" * 10_000, b'{"input": {"a": 1}}'),
    b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -1.5, "temperature": -3}',
)
SAMPLE_SECONDS = 2.0
PATIENCE = 60.0


@dataclass
class Findings:
    """What the clients saw. wrong: descriptions of answers that are not what they should be."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    usage: list[dict[str, Any]] = field(default_factory=list)

    def check(self, what: str, got: Any, expected: Any) -> None:
        self.counts[what] += 1
        if got != expected:
            self.wrong.append(f"{what}: expected {str(expected)[:200]!r}, got {str(got)[:400]!r}")


class Client:
    """Asks again and again, each time in another way, until the time is over."""

    def __init__(
        self, server: ServerProcess, protocols: list[Protocol], findings: Findings, number: int, real: bool
    ) -> None:
        self._address = server.address
        self._protocols = protocols
        self._found = findings
        self._random = random.Random(number)
        self._is_real = real

    async def run(self, until: float) -> None:
        ways: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (40, self.stream),
            (15, self.whole),
            (15, self.leave),
            (8, self.malformed),
            (2, self.oversized),
            (5, self.read_slowly),
        ]
        if not self._is_real:
            ways += [(8, self.call), (4, self.fail), (3, self.samples)]
        weights, actions = zip(*ways, strict=True)
        while time.monotonic() < until:
            (act,) = self._random.choices(actions, weights)
            try:
                await asyncio.wait_for(act(), PATIENCE)
            except StreamedError as error:
                self._found.wrong.append(f"{act.__name__}: the stream failed: {error}")
            except (OSError, EOFError, TimeoutError, ValueError, LookupError) as error:
                self._found.wrong.append(f"{act.__name__}: {type(error).__name__}: {error}")

    async def stream(self) -> None:
        protocol, message, expected = self._question(stream=True)
        self._found.check("stream", await self._read(protocol, message), [expected])

    async def whole(self) -> None:
        protocol, message, expected = self._question(stream=False)
        self._found.check("whole", await self._read(protocol, message, stream=False), [expected])

    async def read_slowly(self) -> None:
        protocol, message, expected = self._question(stream=True)
        pause = self._random.uniform(0.002, 0.02)
        self._found.check("slow reader", await self._read(protocol, message, pause=pause), [expected])

    async def call(self) -> None:
        marker, is_stream = new_marker(), self._random.random() < 0.5
        protocol = self._random.choice([each for each in self._protocols if each.has_tools])
        message = post(protocol.path, protocol.body(f"marker-{marker} call", True, is_stream))
        self._found.check("tool call", await self._read(protocol, message, is_stream), [marker])

    async def samples(self) -> None:
        marker, protocol = new_marker(), self._protocols[0]
        body = {**protocol.body(f"marker-{marker} x5", False, True), "n": 3}
        expected = [" ".join([marker] * 5)] * 3
        self._found.check("several samples", await self._read(protocol, post(protocol.path, body)), expected)

    async def fail(self) -> None:
        """The engine fails; the client must be told so, and the stream must end."""
        protocol = self._random.choice(self._protocols)
        try:
            got: Any = await self._read(
                protocol, post(protocol.path, protocol.body(f"marker-{new_marker()} fail", False, True))
            )
        except StreamedError:
            got = "failed"
        self._found.check("engine error", got, "failed")

    async def leave(self) -> None:
        """Before the answer begins, or in the middle of it."""
        _, message, _ = self._question(stream=self._random.random() < 0.7)
        stream = await Stream.open(self._address, message)
        try:
            async with asyncio.timeout(self._random.expovariate(5.0)):
                await stream.head()
                async for _ in stream.pieces():
                    pass
        except (TimeoutError, EOFError, OSError):
            pass
        self._found.counts["left"] += 1
        stream.abort() if self._random.random() < 0.5 else await stream.close()

    async def malformed(self) -> None:
        path, body = self._random.choice(self._protocols).path, self._random.choice(MALFORMED)
        stream = await Stream.open(self._address, post(path, body))
        status = await stream.head()
        # Where every field may be left out, strange ones are no mistake.
        self._found.check("malformed", (status in (200, 400), path, body[:80]), (True, path, body[:80]))
        await stream.close()

    async def oversized(self) -> None:
        path = self._random.choice(self._protocols).path
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000000\r\n\r\n"
        stream = await Stream.open(self._address, head.encode() + b"x" * 100_000)
        self._found.check("oversized", await stream.head(), 413)
        await stream.close()

    async def _read(self, protocol: Protocol, message: bytes, stream: bool = True, pause: float = 0.0) -> list[str]:
        asked = await Stream.open(self._address, message, limit=1 << 12 if pause else 1 << 20)
        try:
            status = await asked.head()
            pieces = []
            async for piece in asked.pieces():
                pieces.append(piece)
                if pause:
                    await asyncio.sleep(pause)
            body = b"".join(pieces)
            if status != 200:
                raise ValueError(f"status {status}: {body[:300]!r}")
            return protocol.streamed(body) if stream else protocol.whole(json.loads(body))
        finally:
            await asked.close()

    def _question(self, stream: bool) -> tuple[Protocol, bytes, str]:
        """A protocol, a request in it, and the answer that it must get."""
        marker, count = new_marker(), self._random.randint(1, 30)
        expected = " ".join([marker] * count)
        if not self._is_real:
            protocol = self._random.choice(self._protocols)
            return protocol, post(protocol.path, protocol.body(f"marker-{marker} x{count}", False, stream)), expected
        protocol = self._protocols[0]
        body = {**protocol.body(f"Say {marker}.", False, stream), "structured_outputs": {"choice": [expected]}}
        return protocol, post(protocol.path, body), expected


def new_marker() -> str:
    return secrets.token_hex(6)


async def soak(server: ServerProcess, seconds: float, num_clients: int, real: bool = False) -> dict[str, Any]:
    """Everything that was found, as JSON."""
    paths = (await asyncio.to_thread(server.get, "/openapi.json"))["paths"]
    protocols = [each for each in PROTOCOLS if each.path in paths]
    findings, before = Findings(), await asyncio.to_thread(server.get, "/left-over")
    until = time.monotonic() + seconds
    watching = asyncio.create_task(_watch(server, findings, until))
    clients = [Client(server, protocols, findings, number, real) for number in range(num_clients)]
    files_before = server.usage["open_files"]
    begin = time.monotonic()
    await asyncio.gather(*[client.run(until) for client in clients])
    wall = time.monotonic() - begin
    await watching
    after = await _settled(server, before)
    return {
        "seconds": round(wall, 1),
        "clients": num_clients,
        "protocols": [each.path for each in protocols],
        "counts": dict(sorted(findings.counts.items())),
        "num_wrong": len(findings.wrong),
        "wrong": findings.wrong[:20],
        "left_over": {"before": before, "after": after},
        "open_files": {"before": files_before, "after": await _settled_files(server, files_before)},
        "memory": _memory(findings.usage),
        "server_cpu_share": round((findings.usage[-1]["cpu_seconds"] - findings.usage[0]["cpu_seconds"]) / wall, 2),
    }


async def _watch(server: ServerProcess, findings: Findings, until: float) -> None:
    while time.monotonic() < until:
        await _take_sample(server, findings)
        await asyncio.sleep(min(SAMPLE_SECONDS, max(0.01, until - time.monotonic())))
    await _take_sample(server, findings)


async def _take_sample(server: ServerProcess, findings: Findings) -> None:
    findings.usage.append({**server.usage, **await asyncio.to_thread(server.get, "/heap")})


async def _settled(server: ServerProcess, before: dict[str, int]) -> dict[str, int]:
    """What is left, once the server has noticed that all have gone."""
    for _ in range(100):
        left: dict[str, int] = await asyncio.to_thread(server.get, "/left-over")
        if all(left[name] <= before[name] for name in before):
            break
        await asyncio.sleep(0.1)
    return left


async def _settled_files(server: ServerProcess, before: int) -> int:
    """Open files, once the connection that asked what is left is closed too."""
    for _ in range(50):
        after = int(server.usage["open_files"])
        if after <= before:
            break
        await asyncio.sleep(0.1)
    return after


def _memory(usage: list[dict[str, Any]]) -> dict[str, Any]:
    """MB in use and MB resident: after the first fifth of the time, and in the last."""
    return {"in_use": _growth(usage, "used_bytes"), "resident": _growth(usage, "rss_bytes")}


def _growth(usage: list[dict[str, Any]], what: str) -> dict[str, Any]:
    sizes = [each[what] / 1e6 for each in usage]
    fifth = max(1, len(sizes) // 5)
    warm, end = statistics.median(sizes[fifth : 2 * fifth] or sizes), statistics.median(sizes[-fifth:])
    curve = [round(size) for size in sizes[:: max(1, len(sizes) // 12)]]
    return {"warm_mb": round(warm, 1), "end_mb": round(end, 1), "most_mb": round(max(sizes), 1), "curve_mb": curve}


def faults(result: dict[str, Any], memory_mb: float = 5.0) -> list[str]:
    """What of a result is not as it should be. memory_mb: growth that may be the allocator's."""
    found = list(result["wrong"])
    left = result["left_over"]
    found += [
        f"{name} left over: {left['after'][name]}"
        for name in left["before"]
        if left["after"][name] > left["before"][name]
    ]
    files, memory = result["open_files"], result["memory"]
    if files["after"] > files["before"]:
        found.append(f"open files: {files}")
    if memory["in_use"]["end_mb"] - memory["in_use"]["warm_mb"] > memory_mb:
        found.append(f"memory: {memory}")
    return found


def run(seconds: float, num_clients: int, model: str | None = None) -> dict[str, Any]:
    """Start a server, soak it, and end it."""
    options = ["--model", model, "--max-num-seqs", "32"] if model else ["--script", "echo", "--token-seconds", "0.004"]
    with serving(scripted(*options)) as server:
        return asyncio.run(soak(server, seconds, num_clients, model is not None))


def main() -> None:
    parser = argparse.ArgumentParser(description="Soak the server.")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--model", help="A real model instead of the scripted one; embedded for ours.")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    result = run(args.seconds, args.clients, args.model)
    result["faults"] = faults(result)
    print(json.dumps(result, indent=1))
    if args.output:
        save(args.output, args.model or "scripted", result)


def save(path: Path, name: str, result: dict[str, Any]) -> None:
    """Write the result into a file, beside those of other models."""
    from transformers_speed import processor

    known = json.loads(path.read_text()) if path.exists() else {}
    names = ("codemill", "fastapi", "starlette", "uvicorn", "uvloop", "httptools")
    how = f"--seconds {result['seconds']:.0f} --clients {result['clients']}"
    known[name] = {
        "machine": processor(),
        "versions": {each: version(each) for each in names},
        "command": f"python benchmarks/server_soak.py {how}{'' if name == 'scripted' else f' --model {name}'}",
        **result,
    }
    path.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
