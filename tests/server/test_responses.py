"""Responses over HTTP: answers, streams and errors."""

import json
import time
from typing import Any

import pytest

pytest.importorskip("openai")
import openai
from pydantic import BaseModel

from codemill.server.settings import ServerSettings
from server.events import read_events
from server.responses import EVENT, TOOL, call_text, deltas, kinds, plain, stream, whole


def test_answer(serve):
    client = serve(lambda prompt: "Hello!")
    body = whole(client, model="scripted", input="hi", instructions="Be short.", metadata={"a": "b"}, temperature=0.5)
    assert body["object"] == "response"
    assert body["status"] == "completed"
    assert body["model"] == "scripted"
    (item,) = body["output"]
    assert item["content"] == [{"type": "output_text", "text": "Hello!", "annotations": [], "logprobs": []}]
    assert (item["role"], item["status"]) == ("assistant", "completed")
    echoed = ("instructions", "metadata", "temperature", "tool_choice", "store", "text")
    assert [body[key] for key in echoed] == ["Be short.", {"a": "b"}, 0.5, "auto", False, {"format": {"type": "text"}}]
    usage = body["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] > 0


def test_stream(serve):
    client = serve(lambda prompt: "Hello, wörld! 你好")
    events = stream(client, input="hi")
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert deltas(events, "output_text") == "Hello, wörld! 你好"
    final = events[-1]["response"]
    assert final["output"] == [events[-2]["item"]]
    assert plain(final["output"]) == plain(whole(client, input="hi")["output"])
    assert final["usage"]["output_tokens"] > 3
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1


def test_reasoning_text_and_calls_keep_their_order(serve):
    calls = [call_text("get_weather", city=city) for city in ("Paris", "Rome")]
    said = "<think>\nLet me see.\n</think>\n\nI look.\n" + "\n".join(calls)
    client = serve(lambda prompt: said)
    body = {"input": "hi", "tools": [TOOL]}
    output = whole(client, **body)["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    assert output[1]["content"][0]["text"] == "I look."
    assert [json.loads(item["arguments"]) for item in output[2:]] == [{"city": "Paris"}, {"city": "Rome"}]
    events = stream(client, **body)
    assert plain(events[-1]["response"]["output"]) == plain(output)
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in done] == [0, 1, 2, 3]
    assert [event["item"] for event in done] == events[-1]["response"]["output"]
    assert deltas(events, "reasoning_text") == "Let me see."
    assert kinds(events)[2:8] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    pieces = [event for event in events if event["type"] == "response.function_call_arguments.delta"]
    for item in done[2:]:
        text = "".join(event["delta"] for event in pieces if event["item_id"] == item["item"]["id"])
        assert text == item["item"]["arguments"]


def test_text_between_and_after_calls_stays_there(serve):
    calls = [call_text("get_weather", city=city) for city in ("Paris", "Rome")]
    client = serve(lambda prompt: f"one\n{calls[0]}\ntwo\n{calls[1]}\nthree")
    kinds_of = ["message", "function_call", "message", "function_call", "message"]
    output = whole(client, input="hi", tools=[TOOL])["output"]
    assert [item["type"] for item in output] == kinds_of
    assert [item["content"][0]["text"].strip() for item in output[::2]] == ["one", "two", "three"]
    assert plain(stream(client, input="hi", tools=[TOOL])[-1]["response"]["output"]) == plain(output)


def test_answers_that_are_cut_off(serve):
    client = serve(lambda prompt: "a b c d " * 100)
    body = whole(client, input="hi", max_output_tokens=5)
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"
    events = stream(client, input="hi", max_output_tokens=5)
    assert kinds(events)[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"


def test_a_call_that_is_cut_off_is_never_done(serve):
    """Clients carry out what they are told is done; codex does not look at its status."""
    client = serve(lambda prompt: call_text("get_weather", city="a b c d " * 100))
    events = stream(client, input="hi", tools=[TOOL], max_output_tokens=40)
    assert not any(".done" in event["type"] for event in events)
    final = events[-1]
    assert final["type"] == "response.incomplete"
    assert [item["status"] for item in final["response"]["output"]] == ["incomplete"]


@pytest.mark.parametrize("said", ["", "<think>\nhm\n</think>\n"])
def test_an_answer_without_words_is_still_a_message(serve, said):
    output = whole(serve(lambda prompt: said), input="hi")["output"]
    assert output[-1]["type"] == "message"
    assert output[-1]["content"][0]["text"] == ""


def test_logprobs(serve):
    client = serve(lambda prompt: "Hello, 你好!")
    body = {"input": "hi", "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    (item,) = whole(client, **body)["output"]
    logprobs = item["content"][0]["logprobs"]
    assert b"".join(bytes(each["bytes"]) for each in logprobs).decode().startswith("Hello, 你好!")
    assert all(len(each["top_logprobs"]) == 1 for each in logprobs)
    events = stream(client, **body)
    streamed = [each for event in events if event["type"] == "response.output_text.delta" for each in event["logprobs"]]
    assert streamed == logprobs


def test_schema(serve):
    client = serve(lambda prompt: '{"n": 3}')
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    body = whole(client, input="hi", text={"format": form, "verbosity": "low"})
    assert json.loads(body["output"][0]["content"][0]["text"]) == {"n": 3}
    assert body["text"] == {"format": form, "verbosity": "low"}


def test_context_is_exceeded(serve):
    answer = serve(max_model_len=64).post(
        "/v1/responses", json={"input": "word " * 200, "stream": True, "truncation": "auto"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_failures_in_the_middle(serve):
    from codemill.errors import CodemillError

    def script(prompt: str) -> str:
        raise CodemillError("the model broke")

    events = stream(serve(script), input="hi")
    assert kinds(events) == ["created", "in_progress", "failed"]
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "the model broke"}
    assert serve(script).post("/v1/responses", json={"input": "hi"}).status_code == 500


def test_streams_say_that_they_are_alive(serve):
    client = serve(prefill_seconds=1.0, settings=ServerSettings(heartbeat_seconds=0.3))
    begin = time.monotonic()
    with client.stream("POST", "/v1/responses", json={"input": "hi", "stream": True}) as response:
        reading = read_events(response)
        assert next(reading)[0] == "response.created"
        assert time.monotonic() - begin < 0.3
        events = [json.loads(data) for _, data in reading]
    waits = [event for event in events[1:] if event["type"] == "response.in_progress"]
    assert 2 <= len(waits) <= 4
    assert all(EVENT.validate_python(event) and event["prompt_progress"]["total"] > 0 for event in waits)


def test_input_tokens(serve):
    client = serve()
    body = {"input": "hi", "tools": [TOOL], "instructions": "Be short."}
    counted = client.post("/v1/responses/input_tokens", json=body).json()
    assert counted == {
        "object": "response.input_tokens",
        "input_tokens": whole(client, **body)["usage"]["input_tokens"],
    }


class TestOpenAIPackage:
    """The real client, which checks more of a stream than its models do."""

    @staticmethod
    def connect(client) -> Any:
        return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="x", max_retries=0)

    def test_a_tool_using_turn(self, serve):
        def script(prompt: str) -> str:
            return "It is sunny." if "SUN" in prompt else f"I look.\n{call_text('get_weather', city='Paris')}"

        sdk = self.connect(serve(script))
        items: list[Any] = [{"role": "user", "content": "Weather?"}]
        with sdk.responses.stream(model="m", input=items, tools=[TOOL]) as events:
            first = events.get_final_response()
        call = first.output[-1]
        assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
        items += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": "SUN"}]
        assert sdk.responses.create(model="m", input=items, tools=[TOOL]).output_text == "It is sunny."

    def test_parse(self, serve):
        class Point(BaseModel):
            x: int
            y: int

        sdk = self.connect(serve(lambda prompt: '{"x": 1, "y": 2}'))
        assert sdk.responses.parse(model="m", input="hi", text_format=Point).output_parsed == Point(x=1, y=2)
        with sdk.responses.stream(model="m", input="hi", text_format=Point) as events:
            assert events.get_final_response().output_parsed == Point(x=1, y=2)

    def test_heartbeats_do_no_harm(self, serve):
        client = serve(prefill_seconds=0.5, token_seconds=0.05, settings=ServerSettings(heartbeat_seconds=0.1))
        with self.connect(client).responses.stream(model="m", input="hi") as events:
            assert events.get_final_response().output_text == "Hello!"

    def test_counts(self, serve):
        assert self.connect(serve()).responses.input_tokens.count(model="m", input="hi").input_tokens > 3


def test_recorded_requests(serve, shared_data):
    client = serve()
    paths = sorted((shared_data.parent / "clients").glob("*responses*.json"))
    assert paths or not (shared_data.parent / "clients").exists()
    for path in paths:
        body = json.loads(path.read_text())["body"]
        whole(client, **{**body, "stream": False})
        stream(client, **body)
