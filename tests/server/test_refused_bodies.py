"""Bodies that a client could hold up all others with, or fill the memory."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import ValidationError

from codemill.chat import ToolCallParser
from codemill.server import event_reader
from codemill.server.protocols.chat_body import ChatBody
from codemill.server.protocols.completions_body import CompletionsBody
from codemill.server.protocols.embeddings import EmbeddingsBody
from codemill.server.protocols.infill import InfillBody
from codemill.server.protocols.messages_body import MessagesBody
from codemill.server.protocols.tokens import DetokenizeBody

MESSAGES = [{"role": "user", "content": "hi"}]
MANY = 1000


@pytest.mark.parametrize(
    ("body_class", "body"),
    [
        (ChatBody, {"messages": [1] * MANY}),
        (ChatBody, {"messages": MESSAGES, "stop": [1] * MANY}),
        (ChatBody, {"messages": MESSAGES, "stop_token_ids": ["x"] * MANY}),
        (ChatBody, {"messages": MESSAGES, "tools": [1] * MANY}),
        (ChatBody, {"messages": MESSAGES, "guided_choice": [1] * MANY}),
        (CompletionsBody, {"prompt": [*[1] * MANY, "x"]}),
        (CompletionsBody, {"prompt": [*[[1, 2]] * MANY, "x"]}),
        (CompletionsBody, {"prompt": [["x"] * MANY]}),
        (EmbeddingsBody, {"input": [*[1] * MANY, "x"]}),
        (MessagesBody, {"messages": [1] * MANY}),
        (MessagesBody, {"messages": MESSAGES, "stop_sequences": [1] * MANY}),
        (DetokenizeBody, {"tokens": ["x"] * MANY}),
        (InfillBody, {"input_extra": [1] * MANY}),
        (InfillBody, {"response_fields": [1] * MANY}),
    ],
)
def test_a_list_of_wrong_values_is_refused_at_the_first(body_class, body):
    with pytest.raises(ValidationError) as caught:
        body_class(**body)
    assert caught.value.error_count() <= 4  # one for each form that the field may have


def test_a_name_of_any_length_is_not_repeated(serve):
    answer = serve().post("/v1/chat/completions", json={"messages": MESSAGES, "logit_bias": {"k" * 100_000: 1}})
    assert (answer.status_code, len(answer.text) < 1000) == (400, True)


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template_kwargs": {"messages": []}},
        {"chat_template_kwargs": {"tools": []}},
        {"chat_template_kwargs": {"self": 1}},
        {"chat_template_kwargs": {"marks": 1}},
        {"chat_template_kwargs": {"revision": {}}},
        {"guided_choice": [f"choice {i}" for i in range(5000)]},
        {
            "messages": [
                *MESSAGES,
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": '{"a":' + "[" * 900 + "]" * 900 + "}"}}],
                },
            ]
        },
    ],
)
def test_what_cannot_be_done_is_no_mistake_of_the_server(serve, fields):
    answer = serve().post("/v1/chat/completions", json={"messages": MESSAGES, **fields})
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("where", ["part", "tool", "arguments"])
def test_a_long_conversation_holds_up_nobody(serve, where):
    text = "word and " * 200_000
    part = [{"type": "text", "text": text if where == "part" else "hi"}]
    call = {"function": {"name": "f", "arguments": {"a": text if where == "arguments" else ""}}}
    tool = {"function": {"name": "f", "description": text if where == "tool" else ""}}
    messages = [{"role": "user", "content": part}, {"role": "assistant", "tool_calls": [call]}]
    client = serve()
    with ThreadPoolExecutor() as pool:
        begin = time.perf_counter()
        asking = pool.submit(client.post, "/v1/chat/completions", json={"messages": messages, "tools": [tool]})
        delays = []
        while not asking.done():
            started = time.perf_counter()
            client.get("/version")
            delays.append(time.perf_counter() - started)
    assert asking.result().json()["error"]["code"] == "context_length_exceeded"
    assert max(delays) < (time.perf_counter() - begin) / 2


def test_unknown_tools_do_not_fill_the_log(serve, caplog):
    with caplog.at_level("INFO", "codemill"):
        body = {"messages": MESSAGES, "tools": [{"type": "strange_tool"}] * 1000}
        assert serve().post("/v1/chat/completions", json=body).status_code == 200
    assert len([line for line in caplog.messages if "strange_tool" in line]) == 1


def test_a_tool_is_described_once_however_often_it_is_referred_to(serve):
    tool = {"name": "find", "description": "word " * 1000, "defer_loading": True, "input_schema": {"type": "object"}}
    reference = {"type": "tool_reference", "tool_name": "find"}
    results = [{"type": "tool_result", "tool_use_id": "t", "content": [reference, reference]}] * 20
    body = {"tools": [tool], "messages": [{"role": "user", "content": results}]}
    answer = serve().post("/v1/messages/count_tokens", json=body)
    assert 1000 < answer.json()["input_tokens"] < 3000


def test_a_body_of_millions_of_lists_is_refused(serve):
    answer = serve().post("/v1/chat/completions", json={"messages": MESSAGES, "x": [[]] * 600_000})
    assert answer.status_code == 413


def test_prompts_and_samples_are_bounded_together(serve):
    client = serve()
    assert client.post("/v1/completions", json={"prompt": ["a"] * 64, "n": 17}).status_code == 400
    assert len(client.post("/v1/completions", json={"prompt": ["a"] * 4, "n": 3}).json()["choices"]) == 12


def test_the_tools_of_many_samples_are_read_once(serve, monkeypatch):
    read = []
    monkeypatch.setattr(event_reader, "ToolCallParser", lambda tools: read.append(tools) or ToolCallParser(tools))
    answer = serve().post("/v1/chat/completions", json={"messages": MESSAGES, "n": 50, "tools": [{"name": "f"}]})
    assert (len(answer.json()["choices"]), len(read)) == (50, 1)


@pytest.mark.parametrize(
    "fields",
    [{"stop": ["x"] * 65}, {"stop": "x" * 1001}, {"logit_bias": {str(i): 1 for i in range(4097)}}],
)
def test_what_every_token_is_compared_with_is_bounded(serve, fields):
    answer = serve().post("/v1/chat/completions", json={"messages": MESSAGES, **fields})
    assert (answer.status_code, "at most" in answer.text) == (400, True)


@pytest.mark.parametrize("stream", [False, True])
def test_the_prompts_of_a_request_do_not_fill_the_queue_for_each_other(serve, stream):
    client = serve(max_num_seqs=2, max_waiting=1, token_seconds=0.002)
    body = {"prompt": [f"prompt {i}" for i in range(12)], "stream": stream}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert "error" not in answer.text
