"""A client that leaves during its prompt, and comes back: what was computed is not computed again."""

import json
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'codemill[serve]'")

from codemill import LLM
from codemill.chat import Tokenizer
from codemill.engine.async_engine import AsyncEngine
from codemill.server.registry import Registry
from models.reference import FAMILIES, make_ours, make_reference

CHAT = "/v1/chat/completions"
BLOCK = 16
LEFT_AT = 300  # tokens of the prompt


@pytest.fixture(params=list(FAMILIES))
def client(serve, request, monkeypatch):
    """Of a server with a tiny model of each family, which computes a prompt in many small steps, and tells of each."""
    monkeypatch.setattr("codemill.engine.live_requests.PROGRESS_SECONDS", 0.0)
    tokenizer = Tokenizer.load()
    model = make_ours(make_reference(request.param, vocab_size=tokenizer.vocab_size, max_position_embeddings=4096))
    llm = LLM.from_parts(model, tokenizer, max_num_batched_tokens=BLOCK, block_size=BLOCK)
    engine = AsyncEngine(llm, keep_alive=0.05)
    yield serve(registry=Registry.of(engine))
    engine.shutdown(0.0)


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 2, "temperature": 0, **fields}


def cached_tokens(client: httpx.Client, request: dict[str, Any]) -> tuple[int, int]:
    """Of the prompt: all its tokens, and those that the cache had."""
    usage = client.post(CHAT, json=request).json()["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def leave_during_prompt(client: httpx.Client, request: dict[str, Any]) -> int:
    """Send a request and leave before its first token -> tokens of the prompt that were computed by then."""
    with client.stream("POST", CHAT, json={**request, "stream": True, "return_progress": True}) as response:
        for line in response.iter_lines():
            progress = json.loads(line[6:]).get("prompt_progress") if line.startswith("data: {") else None
            if progress and progress["processed"] >= LEFT_AT:
                assert progress["processed"] < progress["total"]
                return int(progress["processed"])
    raise AssertionError("the prompt was done before anybody heard of it")


def test_a_prompt_that_comes_back_goes_on_where_it_was(client):
    request = body("one two three four five " * 300)
    num_computed = leave_during_prompt(client, request)
    num_tokens, num_cached = cached_tokens(client, request)
    assert num_computed // BLOCK * BLOCK <= num_cached < num_tokens


def test_a_second_turn_reuses_the_first(client):
    first = body("one two three four five " * 60)
    num_first, num_cached = cached_tokens(client, first)
    assert num_cached < BLOCK
    answer = client.post(CHAT, json=first).json()["choices"][0]["message"]["content"]
    turns = [*first["messages"], {"role": "assistant", "content": answer}, {"role": "user", "content": "And now?"}]
    _, num_cached = cached_tokens(client, {**first, "messages": turns})
    # The end of the first prompt, which begins its answer, is another turn's.
    assert num_cached >= num_first - 3 * BLOCK
