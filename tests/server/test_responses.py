"""Responses over HTTP, held against the models of OpenAI's own package."""

import json
import time
from typing import Any

import pytest

pytest.importorskip("openai")
import openai
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from codemill.server.settings import ServerSettings
from server.events import read_events

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOL = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.*/"},
}
AGENTS = {
    "type": "namespace",
    "name": "agents",
    "description": "Sub-agents.",
    "tools": [
        {
            "type": "function",
            "name": "spawn",
            "parameters": {"type": "object", "properties": {"task": {"type": "string"}}},
        }
    ],
}


def call_text(name: str, **arguments: str) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def stream(client, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream; each fits its model, and their numbers count from 0."""
    found = []
    with client.stream("POST", "/v1/responses", json={"stream": True, **body}) as response:
        assert response.status_code == 200, response.read()
        for name, data in read_events(response):
            event = json.loads(data)
            assert event["type"] == name
            found.append(event)
            EVENT.validate_python(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types of events, several in a row as one."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]


def deltas(events: list[dict[str, Any]], kind: str) -> str:
    return "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")


def whole(client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    Response.model_validate(answer.json())
    return answer.json()


def plain(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items without what is made up anew each time."""
    return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in output]


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


def test_custom_tools_get_plain_text(serve):
    patch = '*** Begin Patch\n*** Add File: a "b".txt\n+h\\i\tü 你\n*** End Patch'
    client = serve(lambda prompt: call_text("apply_patch", input=patch))
    events = stream(client, input="hi", tools=[PATCH])
    (item,) = events[-1]["response"]["output"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "apply_patch", patch)
    assert deltas(events, "custom_tool_call_input") == patch
    assert sum(event["type"] == "response.custom_tool_call_input.delta" for event in events) > 5
    done = [event for event in events if event["type"] == "response.custom_tool_call_input.done"]
    assert [event["input"] for event in done] == [patch]
    assert plain(whole(client, input="hi", tools=[PATCH])["output"]) == plain([item])


def test_an_input_under_another_name(serve):
    client = serve(lambda prompt: call_text("apply_patch", patch="abc"))
    (item,) = stream(client, input="hi", tools=[PATCH])[-1]["response"]["output"]
    assert item["input"] == "abc"


def test_namespaces(serve):
    prompts = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return call_text("agents__spawn", task="x")

    client = serve(script)
    (item,) = stream(client, input="hi", tools=[AGENTS, {"type": "web_search"}])[-1]["response"]["output"]
    assert (item["name"], item["namespace"], item["arguments"]) == ("spawn", "agents", '{"task": "x"}')
    again = [{"role": "user", "content": "hi"}, item, {"type": "function_call_output", "call_id": "c", "output": "ok"}]
    whole(client, input=again, tools=[AGENTS])
    assert prompts[1].startswith(prompts[0])  # as it was written, so that its KV is used again
    choice = {"type": "function", "name": "spawn"}
    body = whole(client, input="hi", tools=[AGENTS, TOOL], tool_choice=choice)
    assert body["tool_choice"] == choice
    assert [each["name"] for each in body["output"]] == ["spawn"]


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "get_weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]},
    ],
)
def test_required_calls(serve, choice):
    client = serve(lambda prompt: "I would rather talk.")
    body = whole(client, input="hi", tools=[TOOL], tool_choice=choice, max_output_tokens=200)
    assert {item["name"] for item in body["output"]} == {"get_weather"}


def test_one_call_is_enough(serve):
    client = serve(lambda prompt: call_text("get_weather", city="A") + "\n" + call_text("get_weather", city="B"))
    body = whole(client, input="hi", tools=[TOOL], parallel_tool_calls=False)
    assert len(body["output"]) == 1
    assert body["parallel_tool_calls"] is False


def test_a_history_gives_the_same_prompt_again(serve):
    """All of an answer comes back in the form in which a client got it."""
    prompts = []
    said = f"I look.\n\n{call_text('get_weather', city='Paris')}"  # as the template writes it

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return said

    client = serve(script)
    question = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}]
    output = whole(client, input=question, tools=[TOOL], instructions="Be short.")["output"]
    result = {
        "type": "function_call_output",
        "call_id": output[-1]["call_id"],
        "output": [{"type": "input_text", "text": "sun"}],
    }
    whole(client, input=[*question, *output, result], tools=[TOOL], instructions="Be short.")
    assert prompts[1].startswith(prompts[0] + said)
    assert "sun" in prompts[1]


def test_thinking_comes_back(serve):
    prompts = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return f"<think>\nsecret thought\n</think>\n\n{call_text('get_weather', city='Paris')}"

    client = serve(script)
    body = {"tools": [TOOL], "include": ["reasoning.encrypted_content"]}
    output = whole(client, input="hi", **body)["output"]
    assert "secret" not in output[0]["encrypted_content"]
    result = {"type": "function_call_output", "call_id": output[-1]["call_id"], "output": "sun"}
    from codemill.server.protocols.responses_input import messages_of

    for reasoning in (output[0], {**output[0], "content": None}):
        answer = messages_of(None, [{"role": "user", "content": "hi"}, reasoning, output[1], result])[1]
        assert answer["reasoning_content"] == "secret thought"
        assert len(answer["tool_calls"]) == 1
    assert whole(client, input="hi", tools=[TOOL])["output"][0]["encrypted_content"] is None


def test_effort_none_turns_thinking_off(serve):
    from codemill.server.protocols.responses_body import ResponseBody

    def variables(effort: str | None) -> Any:
        body = ResponseBody(input="hi", reasoning={"effort": effort})
        return body.generation_request(body.offered_tools()).prompt.variables

    assert variables("none") == variables("minimal") == {"enable_thinking": False}
    assert variables("high") == variables(None) == {}
    client = serve()
    assert whole(client, input="hi", reasoning={"effort": "none"})["reasoning"]["effort"] == "none"


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


def test_a_schema_forbids_no_calls(serve):
    """As codex asks with --output-schema: tools until the answer is ready, and that in its form."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    body = {"input": "hi", "tools": [TOOL], "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}}
    (call,) = whole(serve(lambda prompt: call_text("get_weather", city="Paris")), **body)["output"]
    assert json.loads(call["arguments"]) == {"city": "Paris"}
    (message,) = whole(serve(lambda prompt: '{"n": 3}'), **body)["output"]
    assert json.loads(message["content"][0]["text"]) == {"n": 3}
    (message,) = whole(serve(lambda prompt: "I would rather talk."), max_output_tokens=100, **body)["output"]
    assert message["type"] == "function_call" or isinstance(json.loads(message["content"][0]["text"])["n"], int)


def test_what_would_have_to_be_stored(serve):
    client = serve()
    reference = [{"type": "item_reference", "id": "msg_1"}]
    asked = [{"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"background": True}, {"input": reference}]
    for extra in asked:
        answer = client.post("/v1/responses", json={"input": "hi", **extra})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "unsupported"
    for method in ("GET", "DELETE"):
        assert client.request(method, "/v1/responses/resp_1").status_code == 404
    whole(client, input="hi", store=True, previous_response_id=None, background=False)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": []},
        {"input": [3]},
        {"input": [{"type": "function_call"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": [{"role": "user", "content": 3}]},
        {"input": [{"role": "nobody", "content": "x"}]},
        {"input": "hi", "tools": [{"type": "function"}]},
        {"input": "hi", "tools": [{"type": "namespace", "tools": 3}]},
        {"input": "hi", "tool_choice": "required"},
        {"input": "hi", "text": {"format": {"type": "poem"}}},
        {"input": "hi", "temperature": -1},
    ],
)
def test_what_is_wrong_is_said(serve, body):
    for extra in ({}, {"stream": True}):
        answer = serve().post("/v1/responses", json={**body, **extra})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


def test_odd_items_do_not_end_a_conversation(serve):
    prompts = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return "ok"

    items = [
        {"role": "developer", "content": "D"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "U"}], "unknown": 1},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAA"},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "R"}]},
        {"type": "function_call", "name": "gone", "arguments": '{"a": ', "call_id": "1"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_image", "image_url": "data:x"}]},
        {"type": "local_shell_call", "call_id": "2", "action": {"type": "exec", "command": ["ls"]}},
        {"type": "local_shell_call_output", "id": "2", "output": "files"},
        {"type": "custom_tool_call", "call_id": "3", "name": "apply_patch", "input": "PATCH"},
        {"type": "custom_tool_call_output", "call_id": "3", "output": "patched"},
        {"type": "shell_call_output", "call_id": "4", "output": [{"stdout": "out", "stderr": "err"}]},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "no_such_thing"},
    ]
    whole(serve(script), input=items)
    (prompt,) = prompts
    for text in ("D", "U", "R", "gone", "cannot see", "ls", "files", "PATCH", "patched", "out", "err"):
        assert text in prompt
    assert "gAAAAA" not in prompt
    assert "data:x" not in prompt


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
