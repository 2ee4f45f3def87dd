"""The `anthropic` package against the real server."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from clients.pages import Page
from clients.scripts import Conversation, call
from clients.serving import MODEL, serve
from clients.weather import ANSWER, ARGUMENTS, DESCRIPTION, PARAMETERS, RESULT, get_weather
from codemill.server.settings import ServerSettings

anthropic = pytest.importorskip("anthropic")

TOOL = {"name": "get_weather", "description": DESCRIPTION, "input_schema": PARAMETERS}
QUESTION = {"role": "user", "content": "How is the weather in Paris?"}


class Person(BaseModel):
    name: str
    age: int


def client(url: str, **options: Any) -> Any:
    return anthropic.Anthropic(base_url=url, **{"api_key": "x", "max_retries": 0, **options})


@pytest.fixture
def talk() -> Conversation:
    return Conversation("I look.\n" + call("get_weather", **ARGUMENTS), ANSWER)


@pytest.fixture
def sdk(talk: Conversation) -> Iterator[Any]:
    with serve(talk) as url:
        yield client(url)


@pytest.mark.parametrize("streams", [False, True])
def test_a_message_calls_a_tool_and_uses_its_result(sdk: Any, talk: Conversation, streams: bool) -> None:
    messages: list[Any] = [QUESTION]

    def turn() -> Any:
        request = {"model": MODEL, "max_tokens": 500, "messages": messages, "tools": [TOOL], "system": "Be brief."}
        if not streams:
            return sdk.messages.create(**request)
        with sdk.messages.stream(**request) as stream:
            return stream.get_final_message()

    first = turn()
    text, made = first.content
    assert (first.stop_reason, text.type, text.text) == ("tool_use", "text", "I look.")
    assert (made.type, made.name, made.input) == ("tool_use", "get_weather", ARGUMENTS)
    result = {"type": "tool_result", "tool_use_id": made.id, "content": get_weather(**made.input)}
    messages += [{"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in first.content]}]
    messages += [{"role": "user", "content": [result]}]
    second = turn()
    assert (second.stop_reason, [block.text for block in second.content]) == ("end_turn", [ANSWER])
    assert talk.results == [RESULT]
    assert "Be brief." in talk.prompts[0]
    assert second.usage.input_tokens > first.usage.input_tokens > 0


def test_a_call_can_be_demanded() -> None:
    with serve(Conversation(call("get_weather", **ARGUMENTS))) as url:
        request = {"model": MODEL, "max_tokens": 500, "messages": [QUESTION], "tools": [TOOL]}
        answer = client(url).messages.create(**request, tool_choice={"type": "tool", "name": "get_weather"})
    assert [block.input for block in answer.content if block.type == "tool_use"] == [ARGUMENTS]


def test_parse_gives_an_object_of_the_schema() -> None:
    with serve(lambda prompt: '{"name":"Ada","age":36}') as url:
        request = {"model": MODEL, "max_tokens": 500, "messages": [QUESTION]}
        assert client(url).messages.parse(**request, output_format=Person).parsed_output == Person(name="Ada", age=36)


def test_tokens_are_counted_as_they_are_used(sdk: Any) -> None:
    request = {"model": MODEL, "messages": [QUESTION], "tools": [TOOL]}
    counted = sdk.messages.count_tokens(**request).input_tokens
    assert sdk.messages.create(**request, max_tokens=5).usage.input_tokens == counted > 0


def test_stop_sequences_and_the_end_of_the_room_are_told_apart() -> None:
    with serve(lambda prompt: "one two three four") as url:
        request = {"model": MODEL, "messages": [QUESTION]}
        stopped = client(url).messages.create(**request, max_tokens=50, stop_sequences=[" three"])
        short = client(url).messages.create(**request, max_tokens=1)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " three")
    assert stopped.content[0].text == "one two"
    assert short.stop_reason == "max_tokens"


def test_a_wrong_key_is_an_authentication_error() -> None:
    with serve(lambda prompt: "Hi", ServerSettings(api_keys=("secret",), shutdown_seconds=1)) as url:
        request = {"model": MODEL, "max_tokens": 5, "messages": [QUESTION]}
        with pytest.raises(anthropic.AuthenticationError) as caught:
            client(url).messages.create(**request)
        assert caught.value.body["error"]["type"] == "authentication_error"
        assert client(url, api_key="secret").messages.create(**request).content[0].text == "Hi"
        assert client(url, api_key=None, auth_token="secret").messages.create(**request).content[0].text == "Hi"


@pytest.mark.parametrize("streams", [False, True])
def test_a_prompt_that_is_too_long_is_a_bad_request_with_the_words_agents_look_for(streams: bool) -> None:
    long = [{"role": "user", "content": "word " * 500}]
    words = r"prompt is too long: \d{3,} tokens > 100 maximum"  # Claude Code reads both numbers out of it
    with serve(lambda prompt: "Hi", max_model_len=100) as url, pytest.raises(anthropic.BadRequestError, match=words):
        client(url).messages.create(model=MODEL, max_tokens=5, messages=long, stream=streams)


def test_an_answer_gets_the_room_that_is_left() -> None:
    with serve(lambda prompt: "Hi", max_model_len=100) as url:
        answer = client(url).messages.create(model=MODEL, max_tokens=32000, messages=[QUESTION], timeout=10)
    assert answer.content[0].text == "Hi"


def test_an_unknown_model_is_not_found() -> None:
    words = "no model is called 'other': choose qwen3-coder"
    with serve(lambda prompt: "Hi", strict_names=True) as url, pytest.raises(anthropic.NotFoundError, match=words):
        client(url).messages.create(model="other", max_tokens=5, messages=[QUESTION])


def test_a_full_queue_is_a_rate_limit_error() -> None:
    with serve(lambda prompt: "word " * 100, max_num_seqs=1, max_waiting=0, token_seconds=0.01) as url:
        request: dict[str, Any] = {"model": MODEL, "max_tokens": 500, "messages": [QUESTION]}
        with client(url).messages.create(**request, stream=True) as running:
            next(iter(running))
            with pytest.raises(anthropic.RateLimitError) as caught:
                client(url).messages.create(**request)
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_the_program_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(lambda prompt: "Loops unroll at dawn") as url:
        exec(Page("anthropic-sdk", url).program, {})
    assert capsys.readouterr().out == "Loops unroll at dawn"
