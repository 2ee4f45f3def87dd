"""Fields of chat completions that fewer clients send."""

import json

import pytest

from codemill.chat import Tokenizer
from codemill.server.protocols.chat_body import ChatBody
from server.events import read_chunks

MESSAGES = [{"role": "user", "content": "hi"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
CALL = "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
TITLE = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
FORM = {"type": "json_schema", "json_schema": {"name": "t", "schema": TITLE}}


def ask(client, **body):
    answer = client.post("/v1/chat/completions", json={"messages": MESSAGES, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(client, **body):
    body = {"messages": MESSAGES, "stream": True, **body}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        return [choice for chunk in read_chunks(response) for choice in chunk["choices"]]


@pytest.mark.parametrize("said", [CALL, '{"title": "x"}', "neither"])
def test_tools_or_an_answer_in_the_schema(serve, said):
    (choice,) = ask(serve(lambda prompt: said), tools=[TOOL], response_format=FORM, max_tokens=100)["choices"]
    if said == CALL:
        assert choice["finish_reason"] == "tool_calls"
        assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}
    else:
        assert set(json.loads(choice["message"]["content"])) == {"title"}


def test_a_required_call_needs_no_form(serve):
    client = serve(lambda prompt: CALL)
    (choice,) = ask(client, tools=[TOOL], tool_choice="required", response_format=FORM, max_tokens=100)["choices"]
    assert choice["finish_reason"] == "tool_calls"


def test_several_samples_stream_apart(serve):
    choices = stream(serve(lambda prompt: f"text\n{CALL}"), n=3, tools=[TOOL], seed=1)
    for index in range(3):
        own = [each for each in choices if each["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(each["delta"].get("content", "") for each in own) == "text"
        calls = [call for each in own for call in each["delta"].get("tool_calls", [])]
        assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Paris"}
        assert [each["finish_reason"] for each in own if each["finish_reason"]] == ["tool_calls"]


def test_logprobs_beside_tools_are_of_all_tokens(serve):
    client = serve(lambda prompt: f"text\n{CALL}")
    body = ask(client, tools=[TOOL], logprobs=True, top_logprobs=1)
    content = body["choices"][0]["logprobs"]["content"]
    assert len(content) == body["usage"]["completion_tokens"]
    streamed = stream(client, tools=[TOOL], logprobs=True, top_logprobs=1)
    assert [each for choice in streamed for each in (choice["logprobs"] or {}).get("content", [])] == content


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, None),
        ({"enable_thinking": True}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, False),
    ],
)
def test_reasoning_is_switched_off(fields, thinks):
    prompt = ChatBody.model_validate({"messages": MESSAGES, **fields}).generation_request().prompt
    assert prompt.variables.get("enable_thinking") == thinks


def test_functions_of_old(serve):
    seen = []
    client = serve(lambda prompt: seen.append(prompt) or CALL)
    call = {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": "{}"}}
    messages = [*MESSAGES, call, {"role": "function", "name": "get_weather", "content": "rain"}]
    (choice,) = ask(client, messages=messages, functions=[TOOL["function"]])["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
    tools = [*MESSAGES, {"role": "assistant", "tool_calls": [TOOL | {"function": call["function_call"]}]}]
    expected = Tokenizer.load().render([*tools, {"role": "tool", "content": "rain"}], [TOOL])
    assert seen == [expected]
    (choice,) = ask(
        serve(lambda prompt: "no"), functions=[TOOL["function"]], function_call={"name": "get_weather"}, max_tokens=60
    )["choices"]
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("beginning", ["one", [{"type": "text", "text": "one"}]])
def test_the_stop_string_and_the_beginning_may_belong_to_the_text(serve, beginning):
    client = serve(lambda prompt: " two three")
    body = {
        "messages": [*MESSAGES, {"role": "assistant", "content": beginning}],
        "continue_final_message": True,
        "stop": " three",
    }
    for fields, text in (
        ({}, " two"),
        ({"echo": True}, "one two"),
        ({"include_stop_str_in_output": True}, " two three"),
    ):
        assert ask(client, **body, **fields)["choices"][0]["message"]["content"] == text
        streamed = stream(client, **body, **fields)
        assert "".join(choice["delta"].get("content", "") for choice in streamed) == text


def test_fields_that_mean_nothing_here(serve):
    ask(
        serve(),
        store=True,
        metadata={"a": "b"},
        prediction={"type": "content", "content": "x"},
        service_tier="auto",
        user="u",
        modalities=["text"],
        reasoning_effort="medium",
        stream_options=None,
        logit_bias={},
        verbosity="low",
        web_search_options={},
    )
