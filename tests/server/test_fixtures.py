"""Every request that real clients were recorded with gets a well-formed answer, as a whole and as a stream."""

import base64
import json
import math
import struct
from pathlib import Path

import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from server.events import read_chunks, read_events

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
FIXTURES = sorted((SHARED / "clients").glob("*.json"))


@pytest.fixture
def client(serve):
    return serve(lambda prompt: "I will look.", max_model_len=65536)


def send(client, fixture, stream):
    """The answer to a recorded request, with its own headers but those of the connection."""
    own = ("host", "connection", "content-length", "accept-encoding")
    headers = {name: value for name, value in fixture["headers"].items() if name.lower() not in own}
    body = None if fixture["body"] is None else {**fixture["body"], "stream": stream}
    answer = client.request(fixture["method"], fixture["path"], json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.skipif(not FIXTURES, reason="the recorded requests do not lie beside this checkout")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("recorded", FIXTURES, ids=lambda path: path.stem)
def test_a_recorded_request(client, recorded, stream):
    fixture = json.loads(recorded.read_text())
    answer = send(client, fixture, stream)
    path = fixture["path"].partition("?")[0]
    if path == "/v1/chat/completions":
        check_chat(fixture, answer, stream)
    elif path == "/v1/completions":
        check_completions(answer, stream)
    elif path == "/v1/embeddings":
        check_embeddings(answer)
    elif path == "/v1/models":
        assert answer.json()["data"][0]["object"] == "model"
    elif path == "/v1/responses":
        check_response(answer, stream)
    else:
        raise AssertionError(f"nothing checks {path}")


def check_chat(fixture, answer, stream):
    if not stream:
        (choice,) = ChatCompletion.model_validate(answer.json()).choices
        check_form(fixture, choice.message.content)
        return
    chunks = [ChatCompletionChunk.model_validate(each) for each in read_chunks(answer)]
    with_choice = [chunk for chunk in chunks if chunk.choices]
    assert with_choice[0].choices[0].delta.role == "assistant"
    assert with_choice[-1].choices[0].finish_reason is not None
    wants_usage = (fixture["body"].get("stream_options") or {}).get("include_usage")
    assert (chunks[-1].usage is not None) == bool(wants_usage)
    check_form(fixture, "".join(chunk.choices[0].delta.content or "" for chunk in with_choice))


def check_form(fixture, content):
    form = fixture["body"].get("response_format")
    if form is not None:
        value = json.loads(content)
        schema = (form.get("json_schema") or {}).get("schema", {})
        assert set(schema.get("required", [])) <= value.keys()


def check_completions(answer, stream):
    if not stream:
        Completion.model_validate(answer.json())
        return
    chunks = list(read_chunks(answer))
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def check_embeddings(answer):
    """The SDK asks for base64 and reads it before anything has its type."""
    body = answer.json()
    for each in body["data"]:
        raw = base64.b64decode(each["embedding"])
        each["embedding"] = list(struct.unpack(f"<{len(raw) // 4}f", raw))
    (each,) = CreateEmbeddingResponse.model_validate(body).data
    assert math.hypot(*each.embedding) == pytest.approx(1, abs=1e-6)


def check_response(answer, stream):
    if not stream:
        assert Response.model_validate(answer.json()).status == "completed"
        return
    events = [(name, json.loads(data)) for name, data in read_events(answer)]
    assert all(name == data["type"] for name, data in events)
    assert events[0][0] == "response.created"
    assert Response.model_validate(events[-1][1]["response"]).status == "completed"
