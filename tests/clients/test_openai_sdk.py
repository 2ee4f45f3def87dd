"""The `openai` package against the real server."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from clients.pages import Page
from clients.scripts import Conversation, call
from clients.serving import MODEL, serve
from clients.weather import ANSWER, ARGUMENTS, DESCRIPTION, PARAMETERS, RESULT, get_weather
from codemill.server.settings import ServerSettings

openai = pytest.importorskip("openai")

FUNCTION = {"name": "get_weather", "description": DESCRIPTION, "parameters": PARAMETERS, "strict": True}
QUESTION = {"role": "user", "content": "How is the weather in Paris?"}


class Person(BaseModel):
    name: str
    age: int


ADA = Person(name="Ada", age=36)
ADA_SCRIPT = ADA.model_dump_json()


def client(url: str, **options: Any) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", **{"api_key": "x", "max_retries": 0, **options})


@pytest.fixture
def talk() -> Conversation:
    return Conversation("I look.\n" + call("get_weather", **ARGUMENTS), ANSWER)


@pytest.fixture
def sdk(talk: Conversation) -> Iterator[Any]:
    with serve(talk) as url:
        yield client(url)


@pytest.mark.parametrize("streams", [False, True])
def test_chat_calls_a_tool_and_uses_its_result(sdk: Any, talk: Conversation, streams: bool) -> None:
    messages: list[Any] = [QUESTION]

    def turn() -> Any:
        request = {"model": MODEL, "messages": messages, "tools": [{"type": "function", "function": FUNCTION}]}
        if not streams:
            return sdk.chat.completions.create(**request)
        with sdk.chat.completions.stream(**request, stream_options={"include_usage": True}) as stream:
            return stream.get_final_completion()

    first = turn()
    (choice,) = first.choices
    (made,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    assert (made.type, made.function.name) == ("function", "get_weather")
    result = get_weather(**json.loads(made.function.arguments))
    messages += [choice.message.model_dump(exclude_none=True, exclude={"parsed"})]
    messages += [{"role": "tool", "tool_call_id": made.id, "content": result}]
    second = turn()
    assert (second.choices[0].finish_reason, second.choices[0].message.content) == ("stop", ANSWER)
    assert talk.results == [RESULT]
    assert second.usage.prompt_tokens > first.usage.prompt_tokens > 0
    assert second.usage.total_tokens == second.usage.prompt_tokens + second.usage.completion_tokens


@pytest.mark.parametrize("streams", [False, True])
def test_responses_call_a_tool_and_use_its_result(sdk: Any, talk: Conversation, streams: bool) -> None:
    items: list[Any] = [QUESTION]

    def turn() -> Any:
        request = {"model": MODEL, "input": items, "tools": [{"type": "function", **FUNCTION}], "store": False}
        if not streams:
            return sdk.responses.create(**request)
        with sdk.responses.stream(**request) as stream:
            return stream.get_final_response()

    first = turn()
    (made,) = [item for item in first.output if item.type == "function_call"]
    assert (first.status, first.output_text, made.name) == ("completed", "I look.", "get_weather")
    result = get_weather(**json.loads(made.arguments))
    items += [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in first.output]
    items += [{"type": "function_call_output", "call_id": made.call_id, "output": result}]
    second = turn()
    assert (second.status, second.output_text) == ("completed", ANSWER)
    assert talk.results == [RESULT]
    assert second.usage.input_tokens > first.usage.input_tokens > 0


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_can_be_demanded(choice: Any) -> None:
    with serve(Conversation(call("get_weather", **ARGUMENTS))) as url:
        tools = [{"type": "function", "function": FUNCTION}]
        answer = client(url).chat.completions.create(model=MODEL, messages=[QUESTION], tools=tools, tool_choice=choice)
    (made,) = answer.choices[0].message.tool_calls
    assert json.loads(made.function.arguments) == ARGUMENTS


def test_two_calls_in_one_turn_keep_their_arguments() -> None:
    both = [ARGUMENTS, {"city": "Rome", "days": 3}]
    with serve(Conversation("\n".join(call("get_weather", **each) for each in both))) as url:
        tools = [{"type": "function", "function": {**FUNCTION, "strict": True}}]
        with client(url).chat.completions.stream(model=MODEL, messages=[QUESTION], tools=tools) as stream:
            made = stream.get_final_completion().choices[0].message.tool_calls
    assert [json.loads(each.function.arguments) for each in made] == both
    assert len({each.id for each in made}) == 2


def test_parse_gives_an_object_of_the_schema() -> None:
    with serve(lambda prompt: ADA_SCRIPT) as url:
        sdk = client(url)
        chat = sdk.chat.completions.parse(model=MODEL, messages=[QUESTION], response_format=Person)
        assert chat.choices[0].message.parsed == ADA
        assert sdk.responses.parse(model=MODEL, input="Who?", text_format=Person).output_parsed == ADA
        with sdk.chat.completions.stream(model=MODEL, messages=[QUESTION], response_format=Person) as stream:
            assert stream.get_final_completion().choices[0].message.parsed == ADA


def test_completions_fill_a_hole() -> None:
    prompts: list[str] = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return "a + b"

    with serve(script) as url:
        answer = client(url).completions.create(model=MODEL, prompt="return ", suffix="\n# end", max_tokens=50)
    assert answer.choices[0].text == "a + b"
    assert "<|fim_prefix|>return <|fim_suffix|>\n# end<|fim_middle|>" in prompts[0]


def test_embeddings_tell_texts_apart(sdk: Any) -> None:
    first, second, again = sdk.embeddings.create(model=MODEL, input=["one", "two", "one"]).data
    assert first.embedding == again.embedding != second.embedding


def test_models_are_listed(sdk: Any) -> None:
    assert [model.id for model in sdk.models.list()] == [MODEL]
    assert sdk.models.retrieve(MODEL).id == MODEL


def test_logprobs_tell_the_tokens_of_the_answer() -> None:
    with serve(lambda prompt: "Yes.") as url:
        answer = client(url).chat.completions.create(
            model=MODEL, messages=[QUESTION], temperature=0, logprobs=True, top_logprobs=1
        )
    tokens = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens if token.token != "<|im_end|>") == b"Yes."


@pytest.mark.parametrize("streams", [False, True])
def test_several_samples_all_come(streams: bool) -> None:
    with serve(lambda prompt: "Yes.", token_seconds=0.01) as url:
        request: dict[str, Any] = {"model": MODEL, "messages": [QUESTION], "n": 3, "temperature": 1}
        if streams:
            with client(url).chat.completions.stream(**request) as stream:
                answer = stream.get_final_completion()
        else:
            answer = client(url).chat.completions.create(**request)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(i, "Yes.") for i in range(3)]


def test_a_wrong_key_is_an_authentication_error() -> None:
    with serve(lambda prompt: "Hi", ServerSettings(api_keys=("secret",), shutdown_seconds=1)) as url:
        with pytest.raises(openai.AuthenticationError) as caught:
            client(url).models.list()
        assert caught.value.code == "invalid_api_key"
        assert [model.id for model in client(url, api_key="secret").models.list()] == [MODEL]


@pytest.mark.parametrize("streams", [False, True])
def test_a_prompt_that_is_too_long_is_a_bad_request_with_the_code_agents_look_for(streams: bool) -> None:
    long = [{"role": "user", "content": "word " * 500}]
    with serve(lambda prompt: "Hi", max_model_len=100) as url:
        with pytest.raises(openai.BadRequestError, match="maximum context length is 100 tokens") as chat:
            client(url).chat.completions.create(model=MODEL, messages=long, stream=streams)
        with pytest.raises(openai.BadRequestError, match="maximum context length is 100 tokens") as responses:
            client(url).responses.create(model=MODEL, input=long, stream=streams)
    assert (chat.value.code, responses.value.code) == ("context_length_exceeded", "context_length_exceeded")


def test_an_unknown_model_is_not_found() -> None:
    words = "no model is called 'other': choose qwen3-coder"
    with (
        serve(lambda prompt: "Hi", strict_names=True) as url,
        pytest.raises(openai.NotFoundError, match=words) as caught,
    ):
        client(url).chat.completions.create(model="other", messages=[QUESTION])
    assert caught.value.code == "model_not_found"


def test_a_full_queue_is_a_rate_limit_error_and_the_client_waits_as_it_is_told() -> None:
    answer = "word " * 20
    with serve(lambda prompt: answer, max_num_seqs=1, max_waiting=0, token_seconds=0.01) as url:
        request: dict[str, Any] = {"model": MODEL, "messages": [QUESTION]}
        client(url).chat.completions.create(**request)  # the server learns how long an answer takes
        with client(url).chat.completions.create(**request, stream=True) as running:
            next(iter(running))
            with pytest.raises(openai.RateLimitError) as caught:
                client(url).chat.completions.create(**request)
            assert int(caught.value.response.headers["retry-after"]) == 1
            start = time.monotonic()
            patient = client(url, max_retries=3).chat.completions.create(**request)
        assert patient.choices[0].message.content == answer
        assert time.monotonic() - start > 0.9


def test_the_program_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(lambda prompt: "Loops unroll at dawn") as url:
        exec(Page("openai-sdk", url).program, {})
    assert capsys.readouterr().out == "Loops unroll at dawn"
