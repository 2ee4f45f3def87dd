"""A model behind a server: what is asked of it, and what is made of its answers."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from codemill.chat import ToolCallParser
from codemill.eval.endpoint import parse_chat, parse_completion
from codemill.eval.generation import Sampling
from codemill.eval.suite import Prompt
from eval.endpoint_server import KEY, Reply, Server, ask, generator, request, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


# What is asked


def test_a_base_prompt(server: Server) -> None:
    prompt = Prompt(text="def f(\ud800\0", stop=("\ndef", "\nclass"), max_tokens=9)
    (result,) = generator(server, Sampling(0.25, 0.5)).generate([request(prompt)])
    assert (result.text, result.finish_reason, result.error) == (" 42", "stop", None)
    assert server.paths == ["/v1/completions"]
    assert server.requests == [
        {
            "model": "tiny",
            "prompt": "def f(\ud800\0",
            "max_tokens": 9,
            "temperature": 0.25,
            "top_p": 0.5,
            "seed": 100,
            "stop": ["\ndef", "\nclass"],
        }
    ]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_fim_by_tokens_and_by_suffix(server: Server) -> None:
    prompt = Prompt(prefix="a", suffix="b")
    ask(server, prompt)
    assert server.requests[-1]["prompt"] == "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
    assert "suffix" not in server.requests[-1]
    within = Prompt(prefix="a", suffix="b", context_files=(("x.py", "1\n"), ("y.py", "2")), path="z.py", repo_name="r")
    ask(server, within)
    before = "<|repo_name|>r\n<|file_sep|>x.py\n1\n<|file_sep|>y.py\n2\n<|file_sep|>z.py\n"
    assert server.requests[-1]["prompt"] == f"{before}<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
    ask(server, prompt, fim="suffix")
    assert (server.requests[-1]["prompt"], server.requests[-1]["suffix"]) == ("a", "b")
    server.replies = [Reply(json.dumps({"choices": [{"text": "x<|fim_pad|>y<|endoftext|>"}]}).encode())]
    assert ask(server, prompt).text == "x"


def test_chat_with_tools(server: Server) -> None:
    arguments = {"a": 1, "b": ["x", {"y": None}], "text": "</tool_call>"}
    call = {"id": "1", "type": "function", "function": {"name": "geo_find", "arguments": json.dumps(arguments)}}
    message = {"role": "assistant", "content": "I call it.", "reasoning_content": "Hm.", "tool_calls": [call]}
    answer = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    server.replies = [Reply(json.dumps(answer).encode())]
    tools = ({"name": "geo.find", "parameters": {"type": "object", "properties": {}}},)
    result = ask(server, Prompt(messages=({"role": "user", "content": "Hi"},), tools=tools))
    assert server.paths == ["/v1/chat/completions"]
    asked = server.requests[0]
    assert asked["messages"] == [{"role": "user", "content": "Hi"}]
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["geo_find"]
    assert "stop" not in asked
    assert result.text.startswith("<think>\nHm.\n</think>\n")
    parsed = ToolCallParser().parse(result.text)
    assert [(c.name, c.arguments) for c in parsed.tool_calls] == [("geo_find", arguments)]
    assert result.finish_reason == "tool_calls"


def test_a_url_without_a_version(server: Server) -> None:
    server.url = server.url.removesuffix("/v1")
    assert ask(server).text == " 42"
    assert server.paths == ["/v1/completions"]


def test_no_key_no_header(server: Server) -> None:
    ask(server, api_key=None)
    assert server.headers[0]["Authorization"] is None


def test_a_server_that_takes_four_stops(server: Server) -> None:
    def choose(payload: dict[str, Any]) -> Reply:
        if len(payload.get("stop", ())) > 4:
            return Reply(b'{"error": {"message": "\'stop\': at most 4 sequences"}}', 400)
        return Reply()

    server.choose = choose
    prompt = Prompt(text="x", stop=tuple("abcdefg"))
    results = list(generator(server, concurrency=1).generate([request(prompt, i) for i in range(3)]))
    assert [result.text for result in results] == [" 42"] * 3
    assert [len(asked["stop"]) for asked in server.requests] == [7, 4, 4, 4]


# Answers


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": None},
        {"choices": {}},
        {"choices": ["x"]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {}}]},
        {"choices": [{"message": {"content": None}}]},
        {"choices": [{"message": {"content": 7}}]},
        {"choices": [{"message": {"content": "x", "tool_calls": {"name": "f"}}}]},
        {"choices": [{"message": {"content": "x", "tool_calls": [None]}}]},
        {"choices": [{"message": {"content": "x", "tool_calls": [{"function": {"arguments": "{}"}}]}}]},
    ],
)
def test_answers_that_are_none(answer: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_chat(answer)
    with pytest.raises(ValueError, match=r"\w"):
        parse_completion(answer)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": ""}, ""),
        ({"content": "x\0\ud800"}, "x\0\ud800"),
        ({"content": "x", "tool_calls": None}, "x"),
        (
            {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{broken"}}]},
            '<tool_call>\n{"name": "f", "arguments": "{broken"}\n</tool_call>',
        ),
        (
            {"tool_calls": [{"function": {"name": "f"}}, {"function": {"name": "g", "arguments": {"a": 1}}}]},
            '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n'
            '<tool_call>\n{"name": "g", "arguments": {"a": 1}}\n</tool_call>',
        ),
    ],
)
def test_messages_as_text(message: dict[str, Any], text: str) -> None:
    assert parse_chat({"choices": [{"message": message, "finish_reason": 7}]}) == (text, None)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "the request exceeds the available context size, try increasing it",
        "context_length_exceeded",
    ],
)
def test_a_prompt_beyond_a_server_s_context_counts_against_the_model(server: Server, message: str) -> None:
    server.replies = [Reply(json.dumps({"error": {"message": message}}).encode(), 400)]
    result = ask(server)
    assert (result.error, len(server.requests)) == (None, 1)
    assert "answered 400" in (result.unable or "")


def test_another_refusal_of_one_request_is_an_error() -> None:
    with serving() as server:
        server.replies = [Reply(b'{"error": {"message": "bad grammar"}}', 400)]
        result = ask(server)
    assert "bad grammar" in (result.error or "")
    assert result.unable is None


@pytest.mark.parametrize("reason", ["length", "stop", "content_filter"])
def test_an_answer_without_text_is_an_answer(reason: str) -> None:
    message = {"content": None, "reasoning_content": "hmm"}
    text, found = parse_chat({"choices": [{"message": message, "finish_reason": reason}]})
    assert (text.endswith("</think>\n"), found) == (True, reason)
