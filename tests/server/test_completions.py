"""Completions of raw prompts over HTTP."""

import json

import pytest
from openai.types import Completion

from server.events import read_chunks


def post(client, **body):
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return validated(answer.json())


def validated(body):
    """The SDK's types allow no null where OpenAI's API has it: before the end, and where nothing predicts a token."""
    full = json.loads(json.dumps(body))
    for choice in full["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or "stop"
        logprobs = choice["logprobs"] or {}
        for name in ("token_logprobs", "top_logprobs"):
            logprobs[name] = [each for each in logprobs.get(name, []) if each is not None]
        choice["logprobs"] = choice["logprobs"] and logprobs
    Completion.model_validate(full)
    return Completion.construct(**body)


def stream(client, **body):
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200
        return [validated(each) for each in read_chunks(response)]


def test_one_prompt(serve):
    client = serve(lambda prompt: f"{prompt}!")
    answer = post(client, prompt="abc", max_tokens=50)
    assert answer.choices[0].text == "abc!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_sixteen_tokens_unless_told(serve):
    answer = post(serve(lambda prompt: "a b c d " * 100), prompt="x")
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_several_prompts_with_several_samples_keep_their_order(serve):
    client = serve(lambda prompt: f"<{prompt}>")
    prompts = [f"prompt {number}" for number in range(20)]
    answer = post(client, prompt=prompts, n=2, max_tokens=50)
    assert [choice.index for choice in answer.choices] == list(range(40))
    assert [choice.text for choice in answer.choices] == [f"<{prompt}>" for prompt in prompts for _ in range(2)]
    chunks = stream(client, prompt=prompts, n=2, max_tokens=50, stream_options={"include_usage": True})
    texts = [""] * 40
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in answer.choices]
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens


def test_token_ids(serve):
    client = serve(lambda prompt: f"<{prompt}>")
    ids = client.post("/tokenize", json={"content": "one two"}).json()["tokens"]
    assert post(client, prompt=ids).choices[0].text == "<one two>"
    assert post(client, prompt=[ids, ids[:1]]).choices[0].text == "<one two>"


def test_suffix_fills_in_the_middle(serve):
    client = serve(lambda prompt: prompt)
    answer = post(client, prompt="def f(x):\n", suffix="\n    return y", max_tokens=100, skip_special_tokens=False)
    expected = "<|fim_prefix|>def f(x):\n<|fim_suffix|>\n    return y<|fim_middle|>"
    assert expected.startswith(answer.choices[0].text)  # the script repeats the prompt, whose first token ends it
    seen = []
    client = serve(lambda prompt: seen.append(prompt) or "    y = x")
    assert post(client, prompt="def f(x):\n", suffix="\n    return y").choices[0].text == "    y = x"
    assert seen == [expected]


def test_control_tokens_of_a_prompt_are_meant(serve):
    client = serve()
    ids = client.post("/tokenize", json={"content": "<|fim_prefix|>"}).json()["tokens"]
    assert len(ids) == 1
    assert post(client, prompt="<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>").usage.prompt_tokens == 5


def test_echo_with_logprobs(serve):
    client = serve(lambda prompt: "wörld 你好")
    answer = post(client, prompt="Hello, ", echo=True, logprobs=1, max_tokens=50)
    (choice,) = answer.choices
    assert choice.text == "Hello, wörld 你好"
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == answer.usage.total_tokens
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    assert all(value == 0.0 for value in logprobs.token_logprobs[1:])
    for token, offset in zip(logprobs.tokens[:-1], logprobs.text_offset, strict=False):
        assert token.startswith("bytes:") or choice.text[offset:].startswith(token)
    chunks = stream(client, prompt="Hello, ", echo=True, logprobs=1, max_tokens=50)
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [offset for part in parts for offset in part.text_offset] == logprobs.text_offset


def test_only_the_prompt(serve):
    answer = post(serve(), prompt="Hello, you", echo=True, logprobs=0, max_tokens=0)
    assert answer.choices[0].text == "Hello, you"
    assert len(answer.choices[0].logprobs.tokens) == answer.usage.prompt_tokens
    assert answer.usage.completion_tokens == 0
    assert post(serve(), prompt="Hello, you", max_tokens=0).choices[0].text == ""


def test_best_of(serve):
    client = serve(lambda prompt: "yes")
    assert len(post(client, prompt="x", n=2, best_of=3).choices) == 2
    assert "".join(chunk.choices[0].text for chunk in stream(client, prompt="x", best_of=2)) == "yes"
    assert client.post("/v1/completions", json={"prompt": "x", "n": 2, "best_of": 1}).status_code == 400


def test_stop(serve):
    client = serve(lambda prompt: "one two three")
    assert post(client, prompt="x", stop=[" three"]).choices[0].text == "one two"
    answer = post(client, prompt="x", stop=[" two"], include_stop_str_in_output=True)
    assert answer.choices[0].text == "one two"


def test_choice_of_texts(serve):
    answer = post(serve(lambda prompt: "something else"), prompt="x", guided_choice=["yes", "no"])
    assert answer.choices[0].text in ("yes", "no")


@pytest.mark.parametrize("body", [{"prompt": []}, {"prompt": [10**9]}, {"prompt": [[1], []]}, {"prompt": {"a": 1}}])
def test_prompts_that_are_none(serve, body):
    assert serve().post("/v1/completions", json=body).status_code == 400


def test_one_prompt_that_is_too_long_fails_the_batch(serve):
    client = serve(max_model_len=64)
    answer = client.post("/v1/completions", json={"prompt": ["short", "word " * 100]})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert post(client, prompt="short").choices[0].text == "Hello!"
