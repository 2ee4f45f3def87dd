"""Embeddings over HTTP, those of a real network beside what transformers computes."""

import math

import openai
import pytest
import torch
import transformers
from openai.types import CreateEmbeddingResponse

from codemill import LLM
from codemill.chat import Tokenizer
from codemill.engine.async_engine import AsyncEngine
from codemill.server.registry import Registry
from models.reference import make_ours, make_reference

TEXTS = ["def add(a, b):\n    return a + b\n", "Grüße, 世界!", "x"]


@pytest.fixture(scope="module")
def reference():
    return make_reference("qwen3", vocab_size=Tokenizer.load().vocab_size)


@pytest.fixture
def client(serve, reference):
    with AsyncEngine(LLM.from_parts(make_ours(reference), Tokenizer.load(), kv_cache_bytes=16 << 20)) as engine:
        yield serve(registry=Registry.of(engine))


def expected(reference: transformers.PreTrainedModel, text: str, dimensions: int | None = None):
    tokenizer = Tokenizer.load()
    ids = [*tokenizer.encode(text), tokenizer.control_tokens["<|endoftext|>"]]
    with torch.no_grad():
        hidden = reference.model(torch.tensor([ids])).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(hidden[:dimensions], dim=0).tolist()


def test_as_transformers(client, reference):
    for _ in range(2):  # the second time the prompts are cached
        body = client.post("/v1/embeddings", json={"input": TEXTS, "model": "m"}).json()
        CreateEmbeddingResponse.model_validate(body)
        for text, each in zip(TEXTS, body["data"], strict=True):
            assert each["embedding"] == pytest.approx(expected(reference, text), abs=2e-5)
    tokenizer = Tokenizer.load()
    ends = [*tokenizer.encode(TEXTS[0]), tokenizer.control_tokens["<|endoftext|>"]]
    body = client.post("/v1/embeddings", json={"input": ends}).json()
    assert body["data"][0]["embedding"] == pytest.approx(expected(reference, TEXTS[0]), abs=2e-5)
    assert body["usage"]["prompt_tokens"] == len(ends)


def test_a_long_text(client, reference):
    text = "for value in values:\n    print(value)\n" * 15
    (each,) = client.post("/v1/embeddings", json={"input": text}).json()["data"]
    assert each["embedding"] == pytest.approx(expected(reference, text), abs=2e-5)


def test_fewer_dimensions_and_base64(client, reference):
    sdk = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="x")  # asks for base64 by itself
    answer = sdk.embeddings.create(model="m", input=TEXTS[0], dimensions=16)
    assert answer.data[0].embedding == pytest.approx(expected(reference, TEXTS[0], 16), abs=2e-5)
    assert math.hypot(*answer.data[0].embedding) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        {"input": []},
        {"input": "x", "dimensions": 10**6},
        {"input": "x", "encoding_format": "int8"},
        {"input": [[]]},
        {},
    ],
)
def test_what_is_wrong(serve, body):
    assert serve().post("/v1/embeddings", json=body).status_code == 400


def test_a_text_that_is_too_long(serve):
    answer = serve(max_model_len=64).post("/v1/embeddings", json={"input": ["x", "word " * 100]})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
