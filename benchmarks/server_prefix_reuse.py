"""What a second turn of an agent costs, and a prompt that is sent again: time to the first token over HTTP.

    python benchmarks/server_prefix_reuse.py --requests DIRECTORY [--model random:qwen3-0.6b] [--quantization int4]
        [--tokenizer DIRECTORY] [--output NAME.json]

`codemill serve` runs in a process of its own. DIRECTORY holds requests that a real agent sent, `qwen-code-*-turn1.json`
and `*-turn2-toolresult.json`. --tokenizer: of random weights, which bring none: a directory with `tokenizer.json` and
`chat_template.jinja`; otherwise they get the embedded model's, which makes more tokens of a text.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from server_client import CHAT, Stream, post
from server_process import ServerProcess, codemill_serve, command_line, serving

FIRST, SECOND = "qwen-code-0.24.4-turn1.json", "qwen-code-0.24.4-turn2-toolresult.json"
CUT_AT = 0.5  # of the first prompt's time


@dataclass(frozen=True)
class FirstToken:
    """seconds until it came; tokens of the prompt, and how many of them the prefix cache had."""

    seconds: float
    prompt_tokens: int
    cached_tokens: int

    def as_object(self) -> dict[str, Any]:
        return {**self.__dict__, "seconds": round(self.seconds, 3)}


async def first_token(
    server: ServerProcess, body: dict[str, Any], leave_after: float | None = None
) -> FirstToken | None:
    """Ask for one token. leave_after: seconds after which the client has gone, if there is no answer by then."""
    request = {**body, "max_tokens": 1, "stream": True, "stream_options": {"include_usage": True}}
    begin = time.perf_counter()
    stream = await Stream.open(server.address, post(CHAT, request))
    try:
        async with asyncio.timeout(leave_after):
            assert await stream.head() == 200, await stream.body()
            chunks = []
            async for piece in stream.pieces():
                chunks += [json.loads(line[6:]) for line in piece.split(b"\n") if line.startswith(b"data: {")]
                if any(choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]):
                    break
            seconds = time.perf_counter() - begin
            async for piece in stream.pieces():
                chunks += [json.loads(line[6:]) for line in piece.split(b"\n") if line.startswith(b"data: {")]
    except TimeoutError:
        return None
    finally:
        stream.abort()
    usage = next(chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage"))
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return FirstToken(seconds, usage["prompt_tokens"], cached)


def other_beginning(body: dict[str, Any]) -> dict[str, Any]:
    """The same request, of which the cache knows nothing."""
    first, *others = body["messages"]
    return {**body, "messages": [{**first, "content": f"Again. {first['content']}"}, *others]}


async def measure(server: ServerProcess, requests: Path) -> dict[str, Any]:
    first, second = (json.loads((requests / name).read_text())["body"] for name in (FIRST, SECOND))
    cold = await first_token(server, first)
    second_turn = await first_token(server, second)
    repeated = [await first_token(server, second) for _ in range(3)]
    assert cold is not None
    assert second_turn is not None
    left = await first_token(server, other_beginning(first), leave_after=CUT_AT * cold.seconds)
    retried = await first_token(server, other_beginning(first))
    assert left is None, "the prompt was done before the client left"
    assert retried is not None
    assert all(repeated)
    return {
        "first_turn": cold.as_object(),
        "second_turn": second_turn.as_object(),
        "second_over_first": round(second_turn.seconds / cold.seconds, 4),
        "second_turn_again_seconds": round(statistics.median(each.seconds for each in repeated if each), 3),
        "left_after_seconds": round(CUT_AT * cold.seconds, 3),
        "sent_again": retried.as_object(),
        "sent_again_over_first": round(retried.seconds / cold.seconds, 4),
    }


def preparation_seconds(model: Path | str, requests: Path) -> dict[str, Any]:
    """What the second turn's prompt costs before the engine sees it: rendered and made tokens, and its blocks named."""
    from codemill.chat.tokenizer import Tokenizer
    from codemill.engine.prefix_hash import extend_hashes

    body = json.loads((requests / SECOND).read_text())["body"]
    tokenizer = Tokenizer.load(model)
    tokenizer.encode_chat(body["messages"], body["tools"])
    begin = time.perf_counter()
    ids = tokenizer.encode_chat(body["messages"], body["tools"])
    encoded = time.perf_counter()
    extend_hashes([], ids, 16, b"")
    named = time.perf_counter()
    return {"render_and_encode": round(encoded - begin, 4), "name_blocks": round(named - encoded, 4)}


@contextmanager
def model_directory(model: str, tokenizer: Path | None) -> Iterator[str]:
    """A directory with the model's weights and that tokenizer, or the model itself if there is none."""
    if tokenizer is None:
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        subprocess.run([sys.executable, "-m", "codemill", "convert", model, str(directory)], check=True)
        for name in ("tokenizer.json", "chat_template.jinja"):
            shutil.copy(tokenizer / name, directory / name)
        yield str(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to the first token of second turns and of prompts sent again.")
    parser.add_argument("--requests", type=Path, required=True)
    parser.add_argument("--model", default="random:qwen3-0.6b")
    parser.add_argument("--quantization", default="int4")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with model_directory(args.model, args.tokenizer) as model:
        options = ["--quantization", args.quantization, "--kv-cache-gib", "4", "--max-model-len", "24576"]
        options += ["--threads", str(args.threads)] if args.threads else []
        with serving(codemill_serve(model, *options), stderr=None) as server:
            figures = asyncio.run(measure(server, args.requests))
        figures["preparation_seconds"] = preparation_seconds(model, args.requests)
    from transformers_speed import processor

    result = {
        "machine": processor(),
        "versions": {name: version(name) for name in ("codemill", "torch", "fastapi", "uvicorn")},
        "command": command_line("server_prefix_reuse.py"),
        "model": f"{args.model}, {args.quantization}",
        "tokenizer": "Qwen3's" if args.tokenizer else "the embedded model's",
        **figures,
    }
    print(json.dumps(result, indent=1))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
