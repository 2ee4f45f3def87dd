"""What the server costs by itself, per request and per token, beside llama-cpp-python's server and the engine alone.

    python benchmarks/server_overhead.py [--rounds 3] [--peer-python PYTHON --gguf embedded.gguf] [--output NAME.json]

The null model is a function that answers at once; tokenizer, template, stops and streaming are real. Its server has one
core, and the clients the other; what they reach against uvicorn alone stands beside it. With a model: the embedded one
through `codemill serve` and in this process, and, of the same weights (`codemill convert embedded embedded.gguf`),
llama-cpp-python's server, PYTHON being one that has it. Servers take turns; figures are medians of the rounds.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop
from server_client import CHAT, Stream, load, post
from server_process import ServerProcess, codemill_serve, command_line, free_port, scripted, serving

SERVER_CORE, CLIENT_CORE = 0, 1
MESSAGES = [{"role": "user", "content": "Write a Python function that reverses a string, and say how it works."}]
CONCURRENCY = (1, 8, 32)
STREAMED_TOKENS = 256
NUM_STREAMS = 8
P50_MS, REQUESTS_PER_SECOND = 2.0, 1000


def request(max_tokens: int = 64, stream: bool = False) -> bytes:
    body = {"model": "any", "messages": MESSAGES, "max_tokens": max_tokens, "stream": stream, "temperature": 0}
    return post(CHAT, {**body, "ignore_eos": True} if stream else body)


def null_model(rounds: int, num_requests: int) -> dict[str, Any]:
    """Whole answers of 14 tokens."""
    with ExitStack() as stack:
        commands = {"codemill": scripted(), "uvicorn_alone": scripted("--plain")}
        servers = {name: stack.enter_context(serving(each, cpu=SERVER_CORE)) for name, each in commands.items()}
        for server in servers.values():
            uvloop.run(load(server.address, request(), 8, 500))
        return {
            f"concurrency_{count}": medians(
                [
                    {name: asked(server, request(), count, num_requests) for name, server in servers.items()}
                    for _ in range(rounds)
                ]
            )
            for count in CONCURRENCY
        }


def asked(server: ServerProcess, message: bytes, concurrency: int, num_requests: int) -> dict[str, float]:
    """Figures of one load."""
    before = server.usage["cpu_seconds"]
    done = uvloop.run(load(server.address, message, concurrency, num_requests))
    cpu = server.usage["cpu_seconds"] - before
    return {
        "requests_per_second": round(done.rate, 1),
        "p50_ms": round(1e3 * done.percentile(50), 3),
        "p99_ms": round(1e3 * done.percentile(99), 3),
        "server_cpu_ms": round(1e3 * cpu / num_requests, 3),
        "client_cpu_ms": round(1e3 * done.client_cpu_seconds / num_requests, 3),
    }


def null_streams(rounds: int) -> dict[str, Any]:
    """Streams of a null model that answers at once: what a token costs on its way."""
    text = "word " * STREAMED_TOKENS
    with serving(scripted("--answer", text), cpu=SERVER_CORE) as server:
        uvloop.run(streams(server, NUM_STREAMS, 2))
        return medians([{"codemill": uvloop.run(streams(server, NUM_STREAMS, 8))} for _ in range(rounds)])


async def streams(server: ServerProcess, concurrency: int, each: int) -> dict[str, float]:
    begin, cpu = time.perf_counter(), server.usage["cpu_seconds"]
    message = request(STREAMED_TOKENS, stream=True)

    async def work() -> int:
        return sum([len(await stream_times(server, message)) for _ in range(each)])

    num_tokens = sum(await asyncio.gather(*[work() for _ in range(concurrency)]))
    seconds, cpu = time.perf_counter() - begin, server.usage["cpu_seconds"] - cpu
    return {
        "tokens_per_second": round(num_tokens / seconds, 1),
        "server_cpu_us_per_token": round(1e6 * cpu / num_tokens, 1),
    }


async def stream_times(server: ServerProcess, message: bytes) -> list[float]:
    """When each piece of text came, in seconds since the request was sent."""
    begin = time.perf_counter()
    stream = await Stream.open(server.address, message)
    times = []
    try:
        assert await stream.head() == 200, await stream.body()
        async for piece in stream.pieces():
            now = time.perf_counter() - begin
            for line in piece.split(b"\n"):
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:])["choices"]
                    times += [now for choice in choices if choice["delta"].get("content")]
    finally:
        await stream.close()
    return times


def one_token(rounds: int, peer_python: str | None, gguf: Path | None, num_requests: int = 100) -> dict[str, Any]:
    """Whole answers of one token by the embedded model, whose prompt is cached: over HTTP, and without it."""
    commands = {"codemill": (codemill_serve("--threads", "1"), [sys.executable, "-c", OURS_ALONE])}
    if peer_python:
        port = str(free_port())
        serve = [peer_python, "-m", "llama_cpp.server", "--model", str(gguf), "--n_threads", "1", "--n_ctx", "1024"]
        alone = [peer_python, "-c", PEER_ALONE, str(gguf)]
        commands["llama_cpp_python"] = ([*serve, "--verbose", "false", "--port", port], alone)
    with ExitStack() as stack:
        servers = {}
        for name, (serve, _) in commands.items():
            url = None if name == "codemill" else f"http://127.0.0.1:{port}"
            servers[name] = stack.enter_context(serving(serve, url))
            uvloop.run(load(servers[name].address, request(1), 1, 10))
        found = []
        for _ in range(rounds):
            over_http = {name: asked(server, request(1), 1, num_requests) for name, server in servers.items()}
            for name, (_, alone) in commands.items():
                over_http[name]["in_process_p50_ms"] = asked_alone(alone, num_requests)
                over_http[name]["overhead_ms"] = round(
                    over_http[name]["p50_ms"] - over_http[name]["in_process_p50_ms"], 3
                )
            found.append(over_http)
        return medians(found)


# Programs that time the same request without a server: the prompt, how many times, and the median in milliseconds.
TIMED = """
import json, statistics, sys, time
messages, times = json.loads(sys.argv[-2]), []
for _ in range(int(sys.argv[-1]) + 10):
    begin = time.perf_counter()
    ask(messages)
    times.append(time.perf_counter() - begin)
print(1e3 * statistics.median(times[10:]))
"""
OURS_ALONE = f"""
import torch
from codemill import LLM, SamplingParams
torch.set_num_threads(1)
llm = LLM()
ask = lambda messages: llm.chat(messages, SamplingParams(temperature=0.0, max_tokens=1))
{TIMED}"""
PEER_ALONE = f"""
import sys
from llama_cpp import Llama
llm = Llama(sys.argv[1], n_threads=1, n_ctx=1024, verbose=False)
ask = lambda messages: llm.create_chat_completion(messages, max_tokens=1, temperature=0.0)
{TIMED}"""


def asked_alone(command: list[str], num_requests: int) -> float:
    done = subprocess.run(
        [*command, json.dumps(MESSAGES), str(num_requests)],
        capture_output=True,
        text=True,
        check=True,
    )
    return round(float(done.stdout.split()[-1]), 3)


def streamed_model(rounds: int, num_tokens: int = 128) -> dict[str, Any]:
    """Time to the first token and between tokens: the embedded model over HTTP and in this process, in turns."""
    import torch

    from codemill import LLM, SamplingParams

    torch.set_num_threads(1)
    llm = LLM()
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)

    def in_process() -> dict[str, float]:
        begin = time.perf_counter()
        return _pace([time.perf_counter() - begin for piece in llm.stream_chat(MESSAGES, params) if piece.text])

    with serving(codemill_serve("--threads", "1")) as server:
        over_http = lambda: _pace(asyncio.run(stream_times(server, request(num_tokens, stream=True))))  # noqa: E731
        in_process(), over_http()
        return medians([{"over_http": over_http(), "in_process": in_process()} for _ in range(4 * rounds)])


def _pace(times: list[float]) -> dict[str, float]:
    between = [later - earlier for earlier, later in itertools.pairwise(times)]
    return {"ttft_ms": round(1e3 * times[0], 3), "tpot_ms": round(1e3 * statistics.fmean(between), 3)}


def medians(rounds: list[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Of each figure of each server the median over the rounds."""
    return {
        name: {figure: statistics.median(each[name][figure] for each in rounds) for figure in rounds[0][name]}
        for name in rounds[0]
    }


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """This process may use only that core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def judge(null: Mapping[str, Any]) -> dict[str, Any]:
    p50 = null["concurrency_1"]["codemill"]["p50_ms"]
    rate = max(each["codemill"]["requests_per_second"] for each in null.values())
    return {
        f"p50 at concurrency 1 below {P50_MS:g} ms": {"measured": p50, "met": p50 < P50_MS},
        f"at least {REQUESTS_PER_SECOND} requests/s of one core": {
            "measured": rate,
            "met": rate >= REQUESTS_PER_SECOND,
        },
    }


def versions(peer_python: str | None) -> dict[str, str]:
    found = {
        name: version(name) for name in ("codemill", "torch", "fastapi", "starlette", "uvicorn", "uvloop", "httptools")
    }
    if peer_python:
        ask = "import llama_cpp; print(llama_cpp.__version__)"
        done = subprocess.run([peer_python, "-c", ask], capture_output=True, text=True, check=True)
        found["llama-cpp-python"] = done.stdout.strip()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="The server's own cost.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=3000, help="Of a round, at each concurrency.")
    parser.add_argument("--peer-python")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with on_core(CLIENT_CORE):
        null = null_model(args.rounds, args.requests)
        streamed = null_streams(args.rounds)
    from transformers_speed import processor

    result = {
        "machine": {"processor": processor(), "cores": "one for the server, one for the clients"},
        "versions": versions(args.peer_python),
        "command": command_line("server_overhead.py"),
        "targets": judge(null),
        "null_model": null,
        "null_model_streams": streamed,
        "embedded_model_one_token": one_token(args.rounds, args.peer_python, args.gguf),
        "embedded_model_streamed": streamed_model(args.rounds),
    }
    print(json.dumps(result, indent=1))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
