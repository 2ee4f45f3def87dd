"""What requests for responses bring along: items of older turns, tools of every kind, and what is wrong with them."""

import json
from typing import Any

import pytest

pytest.importorskip("openai")

from codemill.server.protocols.responses_body import ResponseBody
from codemill.server.protocols.responses_input import messages_of
from server.responses import AGENTS, PATCH, TOOL, call_text, deltas, plain, stream, whole


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
        {"type": "function", "function": {"name": "get_weather"}},
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
    for reasoning in (output[0], {**output[0], "content": None}):
        answer = messages_of(None, [{"role": "user", "content": "hi"}, reasoning, output[1], result])[1]
        assert answer["reasoning_content"] == "secret thought"
        assert len(answer["tool_calls"]) == 1
    assert whole(client, input="hi", tools=[TOOL])["output"][0]["encrypted_content"] is None


def test_effort_none_turns_thinking_off(serve):
    def variables(effort: str | None) -> Any:
        body = ResponseBody(input="hi", reasoning={"effort": effort})
        return body.generation_request(body.offered_tools()).prompt.variables

    assert variables("none") == variables("minimal") == {"enable_thinking": False}
    assert variables("high") == variables(None) == {}
    client = serve()
    assert whole(client, input="hi", reasoning={"effort": "none"})["reasoning"]["effort"] == "none"


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
        {"input": "hi", "text": {"format": "json"}},
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
        {"type": "shell_call_output", "call_id": "4", "output": [{"type": {}, "stdout": "out", "stderr": "err"}]},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "no_such_thing"},
        {"type": ["no", "name"]},
    ]
    whole(serve(script), input=items)
    (prompt,) = prompts
    for text in ("D", "U", "R", "gone", "cannot see", "ls", "files", "PATCH", "patched", "out", "err"):
        assert text in prompt
    assert "gAAAAA" not in prompt
    assert "data:x" not in prompt
