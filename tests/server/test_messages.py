"""Anthropic's messages over HTTP; what comes back is checked with the models of the `anthropic` package."""

import json
import time
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("anthropic")

import anthropic
from anthropic import types
from pydantic import BaseModel, TypeAdapter

from codemill.server.settings import ServerSettings
from server.events import read_events

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {
    "name": "get_weather",
    "description": "The weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
CALL = '<tool_call>\n<function=get_weather>\n<parameter=city>\nPa"ris\n</parameter>\n</function>\n</tool_call>'
ARGUMENTS = {"city": 'Pa"ris'}
THOUGHT = "<think>\nLet me see.\n</think>\n\n"
EVENTS: TypeAdapter[Any] = TypeAdapter(types.RawMessageStreamEvent)


def post(client: httpx.Client, **values: Any) -> httpx.Response:
    body = {"model": "claude", "max_tokens": 400, "messages": MESSAGES, **values}
    return client.post("/v1/messages?beta=true", json=body)


def check(value: Any, data: Any) -> Any:
    """A value of the package that holds all of the data, and nothing that the package does not know."""
    for each in values_of(value):
        assert not each.model_extra, f"{type(each).__name__} does not know {each.model_extra}"
    assert value.model_dump(mode="json", exclude_unset=True) == data
    return value


def values_of(value: Any) -> Any:
    if isinstance(value, BaseModel):
        yield value
        for name in value.model_fields_set:
            yield from values_of(getattr(value, name, None))
    elif isinstance(value, list):
        for each in value:
            yield from values_of(each)


def whole(client: httpx.Client, **values: Any) -> Any:
    answer = post(client, **values)
    assert answer.status_code == 200, answer.text
    return check(types.Message.model_validate(answer.json(), strict=True), answer.json())


def streamed(client: httpx.Client, **values: Any) -> list[Any]:
    body = {"model": "claude", "max_tokens": 400, "messages": MESSAGES, "stream": True, **values}
    events = []
    with client.stream("POST", "/v1/messages?beta=true", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for name, text in read_events(response):
            data = json.loads(text)
            assert name == data["type"]
            if name != "ping":
                events.append(check(EVENTS.validate_python(data, strict=True), data))
    return events


def message_of(events: list[Any]) -> dict[str, Any]:
    """The message that a stream tells, put together by its rules."""
    first, *middle, delta, last = events
    assert (first.type, delta.type, last.type) == ("message_start", "message_delta", "message_stop")
    content: list[dict[str, Any]] = []
    is_open = False
    for event in middle:
        if event.type == "content_block_start":
            assert not is_open
            assert event.index == len(content)
            content.append({**event.content_block.model_dump(exclude_unset=True), "json": ""})
        else:
            assert is_open
            assert event.index == len(content) - 1
        is_open = event.type != "content_block_stop"
        if event.type == "content_block_delta":
            add(content[-1], event.delta)
    assert not is_open
    for block in content:
        text = block.pop("json")
        if block["type"] == "tool_use":
            assert block["input"] == {}
            block["input"] = json.loads(text)
    message = {**first.message.model_dump(exclude_unset=True), "content": content}
    return message | delta.delta.model_dump(exclude_unset=True) | {"usage": delta.usage.model_dump(exclude_unset=True)}


def add(block: dict[str, Any], delta: Any) -> None:
    name = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
    if delta.type == "input_json_delta":
        block["json"] += delta.partial_json
    else:
        block[name[delta.type]] += getattr(delta, name[delta.type])


def answers(client: httpx.Client, **values: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer whole and streamed; ids differ."""
    both = (whole(client, **values).model_dump(exclude_unset=True), message_of(streamed(client, **values)))
    for message in both:
        assert message.pop("id").startswith("msg_")
        for block in message["content"]:
            assert block.pop("id", "toolu_").startswith("toolu_")
    return both


def test_text(serve):
    for message in answers(serve(lambda prompt: "Hello, wörld! 你好")):
        assert message["content"] == [{"type": "text", "text": "Hello, wörld! 你好"}]
        assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
        assert message["model"] == "scripted"
        assert message["usage"]["input_tokens"] > 0
        assert message["usage"]["output_tokens"] > 3


def test_blocks_come_in_their_order(serve):
    client = serve(lambda prompt: f"{THOUGHT}I look.\n{CALL}\n{CALL}")
    for message in answers(client, tools=[TOOL], thinking={"type": "adaptive"}):
        thinking, text, *calls = message["content"]
        assert thinking["thinking"] == "Let me see."
        assert thinking["signature"]
        assert text == {"type": "text", "text": "I look."}
        assert calls == [{"type": "tool_use", "name": "get_weather", "input": ARGUMENTS}] * 2
        assert message["stop_reason"] == "tool_use"
        assert 0 < message["usage"]["output_tokens_details"]["thinking_tokens"] < message["usage"]["output_tokens"]


def test_text_after_a_call_stays_after_it(serve):
    for message in answers(serve(lambda prompt: f"First.\n{CALL}\nThen."), tools=[TOOL]):
        assert [block["type"] for block in message["content"]] == ["text", "tool_use", "text"]


@pytest.mark.parametrize("script", ["", THOUGHT])
def test_an_answer_without_anything_has_a_text_block(serve, script):
    for message in answers(serve(lambda prompt: script)):
        assert message["content"][-1] == {"type": "text", "text": ""}
        assert message["stop_reason"] == "end_turn"


def test_why_it_stopped(serve):
    client = serve(lambda prompt: "one two three four")
    for message in answers(client, stop_sequences=["", " three"]):
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", " three")
        assert message["content"][0]["text"] == "one two"
    for message in answers(client, max_tokens=1):
        assert (message["stop_reason"], message["stop_sequence"]) == ("max_tokens", None)
        assert message["usage"]["output_tokens"] == 1


def test_the_answer_gets_the_room_that_is_left(serve):
    client = serve(lambda prompt: "word " * 200, max_model_len=100)
    for limit in (32000, None):
        for message in answers(client, max_tokens=limit):
            usage = message["usage"]
            assert message["stop_reason"] == "max_tokens"
            assert usage["input_tokens"] + usage["output_tokens"] == 100


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_required_call_whatever_the_model_wants(serve, choice):
    client = serve(lambda prompt: "I would rather talk.")
    thinking = {"type": "enabled", "budget_tokens": 1024}
    for message in answers(client, tools=[TOOL], tool_choice=choice, thinking=thinking):
        assert [block["type"] for block in message["content"]] == ["tool_use"]


def test_one_call_is_all_that_is_wanted(serve):
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    for message in answers(serve(lambda prompt: CALL + CALL), tools=[TOOL], tool_choice=choice):
        assert [block["type"] for block in message["content"]] == ["tool_use"]
        assert message["stop_reason"] == "tool_use"


def test_no_call_is_allowed(serve):
    for message in answers(serve(lambda prompt: f"No. {CALL}"), tools=[TOOL], tool_choice={"type": "none"}):
        assert [block["type"] for block in message["content"]] == ["text"]


@pytest.mark.parametrize("name", ["output_format", "output_config"])
def test_schema(serve, name):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "schema": schema}
    client = serve(lambda prompt: '{"n": 3}, as you asked')
    for message in answers(client, **{name: form if name == "output_format" else {"format": form, "effort": "low"}}):
        assert json.loads(message["content"][0]["text"]) == {"n": 3}


def test_tokens_are_counted_as_they_are_used(serve):
    client = serve()
    body = {"model": "claude", "messages": MESSAGES, "tools": [TOOL], "tool_choice": {"type": "any"}, "system": "Be."}
    answer = client.post("/v1/messages/count_tokens?beta=true", json=body).json()
    counted = check(types.MessageTokensCount.model_validate(answer, strict=True), answer)
    assert counted.input_tokens == whole(client, **body).usage.input_tokens > 0


def test_every_answer_has_a_request_id(serve):
    client = serve()
    for answer in (post(client), post(client, stream=True), post(client, tool_choice={"type": "no such"})):
        assert answer.headers["request-id"] == answer.headers["x-request-id"]


def error_of(answer: httpx.Response) -> Any:
    body = answer.json()
    return check(types.BetaErrorResponse.model_validate(body, strict=True), body).error


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "nobody", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "messages.0.content.0.name"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"tools": [{"description": "nameless"}]}, "tools.0"),
        ({"tools": [TOOL], "tool_choice": {"type": "maybe"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "poem"}}}, "output_config"),
    ],
)
def test_what_is_wrong_is_named(serve, values, place):
    for stream in (False, True):
        answer = post(serve(), stream=stream, **values)
        assert answer.status_code == 400
        assert error_of(answer).type == "invalid_request_error"
        assert error_of(answer).message.startswith(place)


def test_context_is_exceeded(serve):
    client = serve(max_model_len=64)
    counted = client.post("/v1/messages/count_tokens", json={"messages": [{"role": "user", "content": "word " * 200}]})
    num_tokens = counted.json()["input_tokens"]
    for stream in (False, True):
        answer = post(client, messages=[{"role": "user", "content": "word " * 200}], stream=stream)
        assert answer.status_code == 400
        message = error_of(answer).message
        assert message.startswith(f"prompt is too long: {num_tokens} tokens > 64 maximum")
        assert "maximum context length" in message


def test_queue_is_full(serve):
    client = serve(lambda prompt: "a b c d " * 50, max_num_seqs=1, max_waiting=0, token_seconds=0.05)
    body = {"messages": MESSAGES, "stream": True}
    with client.stream("POST", "/v1/messages", json=body) as first:
        lines = first.iter_lines()  # one that is thrown away closes the connection
        next(lines)
        answer = post(client)
        assert answer.status_code == 429
        assert error_of(answer).type == "rate_limit_error"
        assert int(answer.headers["retry-after"]) >= 1


def test_a_stream_that_fails_says_so(serve):
    from codemill.errors import CodemillError

    def script(prompt: str) -> str:
        raise CodemillError("the model failed")

    with serve(script, prefill_seconds=0.2).stream(
        "POST", "/v1/messages", json={"messages": MESSAGES, "stream": True}
    ) as response:
        *_, (name, data) = read_events(response)
    body = json.loads(data)
    assert name == "error"
    assert check(types.BetaErrorResponse.model_validate(body, strict=True), body).error.message == "the model failed"


def test_streams_say_that_they_are_alive(serve):
    client = serve(prefill_seconds=1.0, settings=ServerSettings(heartbeat_seconds=0.3))
    begin = time.monotonic()
    with client.stream("POST", "/v1/messages", json={"messages": MESSAGES, "stream": True}) as response:
        assert time.monotonic() - begin < 0.3  # headers do not wait for the prompt
        events = list(read_events(response))
    assert events[0][0] == "message_start"
    assert 2 <= events.count(("ping", '{"type":"ping"}')) <= 4
    assert events[-1][0] == "message_stop"


def test_the_answer_goes_on_from_a_last_message_of_the_assistant(serve):
    client = serve(lambda prompt: "B)" if prompt.endswith("assistant\nIt is (") else "what?")
    messages = [*MESSAGES, {"role": "assistant", "content": "It is ("}]
    for message in answers(client, messages=messages):
        assert message["content"] == [{"type": "text", "text": "B)"}]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("is_beta", [False, True])
def test_the_package_reads_an_answer(serve, streams, is_beta):
    client = serve(lambda prompt: f"{THOUGHT}I look.\n{CALL}")
    sdk = anthropic.Anthropic(base_url=str(client.base_url), api_key="x", max_retries=0)
    messages = sdk.beta.messages if is_beta else sdk.messages
    request: dict[str, Any] = {"model": "m", "max_tokens": 400, "messages": MESSAGES, "tools": [TOOL]}
    if streams:
        with messages.stream(**request) as stream:
            message = stream.get_final_message()
    else:
        message = messages.create(**request)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[-1].input == ARGUMENTS
    assert message.usage.input_tokens > 0
    again = [*MESSAGES, {"role": "assistant", "content": message.content}]
    again += [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": message.content[-1].id}]}]
    assert messages.create(**{**request, "messages": again}).stop_reason == "tool_use"
