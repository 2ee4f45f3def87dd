"""Servers in processes of their own, for the measurements of the server; also the script that such a process runs.

python benchmarks/server_process.py [--script fixed|echo] [--answer TEXT] [--token-seconds 0] [--plain]
"""

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKER = re.compile(r"marker-([0-9a-f]+)(?: x([0-9]+))?( call)?( fail)?")
FIXED = "This is the answer: it is short, and always the same."


@dataclass
class ServerProcess:
    """A server that runs until the context of `serving` ends."""

    url: str
    process: "subprocess.Popen[Any]"

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rstrip("/").partition(":")
        return host, int(port)

    @property
    def usage(self) -> dict[str, Any]:
        """What the process holds, and the CPU seconds that it has used."""
        folder = Path(f"/proc/{self.process.pid}")  # Linux
        counts = (folder / "stat").read_text().rpartition(")")[2].split()
        return {
            "rss_bytes": int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            "open_files": len(list((folder / "fd").iterdir())),
            "cpu_seconds": (int(counts[11]) + int(counts[12])) / os.sysconf("SC_CLK_TCK"),
        }

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())


@contextlib.contextmanager
def serving(
    command: Sequence[str],
    url: str | None = None,
    seconds: float = 180.0,
    cpu: int | None = None,
    stderr: Any = subprocess.DEVNULL,
) -> Iterator[ServerProcess]:
    """Run a server. One that is given no `url` says where it is in the first line that it writes, as `serve --json`.

    cpu: the core that it may use, None for all.
    """
    process = subprocess.Popen(list(command), stdout=subprocess.PIPE, stderr=stderr)
    try:
        if cpu is not None:
            os.sched_setaffinity(process.pid, {cpu})
        assert process.stdout is not None
        if url is None:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{' '.join(command)}: ended with status {process.wait()}")
            url = json.loads(line)["url"]
        else:
            _wait_for(url, process, seconds)
        yield ServerProcess(url, process)
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()


def scripted(*options: str) -> list[str]:
    """The command of a server whose answers a function decides."""
    return [sys.executable, __file__, *options]


def codemill_serve(*options: str) -> list[str]:
    """The command of a server as users start it."""
    return [sys.executable, "-m", "codemill", "serve", "--port", "0", "--json", *options]


def command_line(script: str) -> str:
    """How a script was called, with the names of files instead of their paths."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{script}", *words])


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def echo(prompt: str) -> str:
    """The last marker in the prompt, over and over: `marker-12ab x50`; a tool call with it after ` call`."""
    from codemill.errors import CodemillError

    found = list(MARKER.finditer(prompt))
    if not found:
        return "no marker"
    marker, count, wants_call, fails = found[-1].groups()
    if fails:
        raise CodemillError("the engine failed, as it was asked to")
    if wants_call:
        return f"<tool_call>\n<function=note>\n<parameter=text>\n{marker}\n</parameter>\n</function>\n</tool_call>"
    return " ".join([marker] * int(count or 1))


async def plain_app(scope: Any, receive: Any, send: Any) -> None:
    """The least that an application can do: what uvicorn and the client reach without a server behind them."""
    more = scope["type"] == "http"
    while more:
        more = (await receive()).get("more_body", False)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"13")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"answer": 1}'})


class LeftOver:
    """The application, and at `/left-over` what the process holds: nothing while no request runs but the one asking."""

    def __init__(self, app: Any, registry: Any, engine: Any) -> None:
        self._app, self._registry, self._engine = app, registry, engine

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") not in ("/left-over", "/heap"):
            await self._app(scope, receive, send)
            return
        body = json.dumps(await self._counts() if scope["path"] == "/left-over" else heap()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _counts(self) -> dict[str, int]:
        metrics = await self._engine.metrics()
        return {
            "tasks": len(asyncio.all_tasks()),
            "inboxes": len(self._engine._inboxes),
            "leases": sum(entry.num_leases for entry in self._registry._entries),
            "running": metrics["running"],
            "waiting": metrics["waiting"],
        }


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    ]


def heap() -> dict[str, int]:
    """Bytes that the process has taken and not freed. What is freed the engine's heap keeps resident (kernels/heap.py),
    so that resident memory says little of a leak."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo
    found = libc.mallinfo2()
    return {"used_bytes": found.uordblks + found.hblkhd, "free_bytes": found.fordblks}


def _wait_for(url: str, process: "subprocess.Popen[Any]", seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        try:
            urllib.request.urlopen(url + "/v1/models", timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"nothing answers at {url}")


def scripted_engine(args: argparse.Namespace) -> Any:
    from codemill.engine.scripted import ScriptedEngine

    return ScriptedEngine(
        echo if args.script == "echo" else lambda prompt: args.answer,
        max_num_seqs=args.max_num_seqs,
        max_waiting=args.max_waiting,
        token_seconds=args.token_seconds,
        prefill_seconds=args.prefill_seconds,
    )


def real_engine(args: argparse.Namespace) -> Any:
    """As `codemill serve` loads it."""
    from codemill import LLM
    from codemill.engine.async_engine import AsyncEngine

    # So little that all of it is soon in use: the system gives memory only when it is touched.
    options = {"max_num_seqs": args.max_num_seqs, "kv_cache_bytes": 64 << 20}
    llm = LLM(None if args.model == "embedded" else args.model, **options)
    return AsyncEngine(llm, max_waiting=args.max_waiting)


def main() -> None:
    parser = argparse.ArgumentParser(description="A server whose answers a function decides.")
    parser.add_argument("--script", choices=["fixed", "echo"], default="fixed")
    parser.add_argument("--answer", default=FIXED)
    parser.add_argument("--token-seconds", type=float, default=0.0)
    parser.add_argument("--prefill-seconds", type=float, default=0.0)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-waiting", type=int)
    parser.add_argument("--write-seconds", type=float, default=60.0)
    parser.add_argument("--model", help="A real model, a spec; embedded for ours.")
    parser.add_argument("--plain", action="store_true", help="No server at all, only uvicorn.")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="Where the log goes.")
    args = parser.parse_args()

    from codemill.server.app import create_app
    from codemill.server.http_server import run_server
    from codemill.server.listening import open_sockets, url_of
    from codemill.server.log import set_up_logging
    from codemill.server.registry import Registry
    from codemill.server.settings import ServerSettings

    settings = ServerSettings(port=0, write_seconds=args.write_seconds)
    engine = real_engine(args) if args.model else scripted_engine(args)
    registry = Registry.of(engine, "null")
    sockets = open_sockets(settings.host, 0)
    url = url_of(sockets[0], settings.host)
    set_up_logging("text", args.log.open("w"))
    app = plain_app if args.plain else LeftOver(create_app(registry, settings), registry, engine)
    run_server(app, registry, settings, sockets, lambda: print(json.dumps({"url": url}), flush=True))


if __name__ == "__main__":
    main()
