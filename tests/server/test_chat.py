"""Chat completions over HTTP."""

import json
import threading
import time

import pytest

from server.events import read_chunks

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"


def test_answer(serve):
    client = serve(lambda prompt: "Hello!")
    answer = client.post("/v1/chat/completions", json={"model": "scripted", "messages": MESSAGES})
    assert answer.status_code == 200
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "scripted"
    (choice,) = body["choices"]
    assert choice["message"]["content"] == "Hello!"
    assert choice["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]


def test_stream(serve):
    client = serve(lambda prompt: "Hello, wörld! 你好")
    body = {"model": "m", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = list(read_chunks(response))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in chunks[:-1]) == "Hello, wörld! 你好"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 3
    assert len({each["id"] for each in chunks}) == 1


def test_tool_call(serve):
    client = serve(lambda prompt: f"I will look.\n{CALL}")
    body = {"messages": MESSAGES, "tools": [TOOL]}
    (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I will look."
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        chunks = list(read_chunks(response))
    deltas = [call for each in chunks for call in each["choices"][0]["delta"].get("tool_calls", [])]
    assert {"index", "id", "type", "function"} <= deltas[0].keys()
    assert deltas[0]["function"]["name"] == "get_weather"
    assert json.loads("".join(each["function"]["arguments"] for each in deltas)) == {"city": "Paris"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_required_call_whatever_the_model_wants(serve, choice):
    client = serve(lambda prompt: "I would rather talk.")
    body = {"messages": MESSAGES, "tools": [TOOL], "tool_choice": choice, "max_tokens": 200}
    (answer,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert [call["function"]["name"] for call in answer["message"]["tool_calls"]] == ["get_weather"]


def test_schema(serve):
    client = serve(lambda prompt: '{"n": 3}')
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body = {"messages": MESSAGES, "response_format": form}
    (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert json.loads(choice["message"]["content"]) == {"n": 3}


def test_context_is_exceeded(serve):
    client = serve(max_model_len=64)
    body = {"messages": [{"role": "user", "content": "word " * 200}], "stream": True}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length" in error["message"]


def test_queue_is_full(serve):
    client = serve(lambda prompt: "a b c d " * 50, max_num_seqs=1, max_waiting=0, token_seconds=0.05)
    body = {"messages": MESSAGES, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as first:
        lines = first.iter_lines()  # one that is thrown away closes the connection
        next(lines)
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1


def test_a_client_that_leaves_frees_its_place(serve):
    client = serve(lambda prompt: "a b c d " * 1000, max_num_seqs=1, token_seconds=0.02)
    with client.stream("POST", "/v1/chat/completions", json={"messages": MESSAGES, "stream": True}) as response:
        next(response.iter_lines())
    begin = time.monotonic()
    body = {"messages": MESSAGES, "max_tokens": 2}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    assert time.monotonic() - begin < 3


def test_streams_say_that_they_are_alive(serve):
    from codemill.server.settings import ServerSettings

    client = serve(prefill_seconds=1.0, settings=ServerSettings(heartbeat_seconds=0.3))
    body = {"messages": MESSAGES, "stream": True}
    begin = time.monotonic()
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert time.monotonic() - begin < 0.3  # headers do not wait for the prompt
        chunks = list(read_chunks(response))
    waits = [each for each in chunks if each["choices"][0]["delta"] == {} and not each["choices"][0]["finish_reason"]]
    assert 2 <= len(waits) <= 4
    assert all(each["prompt_progress"]["total"] > 0 for each in waits)


def test_deadline(serve):
    client = serve(lambda prompt: "a b c d " * 1000, token_seconds=0.02)
    (choice,) = client.post("/v1/chat/completions", json={"messages": MESSAGES, "deadline": 0.3}).json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"]


def test_many_at_once_are_not_mixed_up(serve):
    client = serve(lambda prompt: prompt.rpartition("marker ")[2].split("<")[0])
    answers = {}

    def ask(number: int) -> None:
        body = {"messages": [{"role": "user", "content": f"marker {number}"}]}
        answers[number] = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: str(number) for number in range(32)}
