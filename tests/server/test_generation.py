"""From a request to events, without HTTP."""

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("fastapi")

from codemill.engine.sampling_params import SamplingParams
from codemill.engine.scripted import ScriptedEngine
from codemill.errors import UsageError
from codemill.server.answer import Answer, collect
from codemill.server.events import CallEnd, Done, Finish, ReasoningDelta, TextDelta
from codemill.server.generation import (
    ChatPrompt,
    FimPrompt,
    GenerationRequest,
    TextPrompt,
    ToolUse,
    generate,
    prompt_ids,
)
from codemill.server.served_model import ServedModel

HI = ChatPrompt([{"role": "user", "content": "hi"}])
PARAMS = SamplingParams(max_tokens=400)
PARIS = "<tool_call>\n<function=look>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
ROME = PARIS.replace("Paris", "Rome")
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def served(script, **options) -> ServedModel:
    return ServedModel("scripted", ScriptedEngine(script, **options), None, 0, "qwen3_coder")


def events_of(text: str, request: GenerationRequest, stream: bool = True, **options: Any) -> list[Any]:
    async def run() -> list[Any]:
        model = served(lambda prompt: text, **options)
        return [event async for event in generate(model, request, stream=stream)]

    return asyncio.run(run())


def answer_of(text: str, request: GenerationRequest, stream: bool = True) -> Answer:
    async def run() -> Answer:
        return await collect(generate(served(lambda prompt: text), request, stream=stream))

    return asyncio.run(run())


@pytest.mark.parametrize("stream", [True, False])
def test_reasoning_is_apart(stream):
    answer = answer_of("<think>\nLet me see.\n</think>\n\nYes.", GenerationRequest(HI, PARAMS), stream)
    (sample,) = answer.samples
    assert (sample.reasoning, sample.text) == ("Let me see.", "Yes.")
    assert 0 < answer.usage.reasoning_tokens < answer.usage.completion_tokens


def test_reasoning_that_the_prompt_began():
    prompt = ChatPrompt(HI.messages, prefill="<think>\n")
    (sample,) = answer_of("Hm.\n</think>\nYes.", GenerationRequest(prompt, PARAMS)).samples
    assert (sample.reasoning, sample.text) == ("Hm.", "Yes.")


def test_text_that_is_no_chat_is_left_alone():
    text = f"<think>\nx\n</think>\n{PARIS}"
    (sample,) = answer_of(text, GenerationRequest(TextPrompt("hi"), PARAMS, ToolUse([LOOK]))).samples
    assert sample.text == text
    assert not sample.tool_calls


@pytest.mark.parametrize("stream", [True, False])
def test_parallel_calls(stream):
    request = GenerationRequest(HI, PARAMS, ToolUse([LOOK]))
    (sample,) = answer_of(f"Both.\n{PARIS}\n{ROME}", request, stream).samples
    assert [call.arguments for call in sample.tool_calls] == [{"city": "Paris"}, {"city": "Rome"}]
    assert sample.finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [True, False])
def test_one_call_where_no_more_are_wanted(stream):
    request = GenerationRequest(HI, PARAMS, ToolUse([LOOK], parallel=False), request_id="a")
    events = events_of(f"{PARIS}\n{ROME}\nAnd more text.", request, stream, token_seconds=0.001)
    assert [event.tool_call.arguments for event in events if isinstance(event, CallEnd)] == [{"city": "Paris"}]
    assert [event.reason for event in events if isinstance(event, Finish)] == ["tool_calls"]
    assert isinstance(events[-1], Done)
    assert not any(isinstance(event, TextDelta) for event in events)


def test_strict_tools_are_enforced_and_text_is_allowed():
    request = GenerationRequest(HI, PARAMS, ToolUse([LOOK], strict=True))
    assert answer_of("Just text.", request).samples[0].text == "Just text."
    (sample,) = answer_of(PARIS.replace("city", "town"), request).samples
    assert all(call.arguments.keys() == {"city"} for call in sample.tool_calls)


def test_no_call_where_none_is_wanted():
    request = GenerationRequest(HI, PARAMS, ToolUse([LOOK], choice="none"))
    (sample,) = answer_of(f"Well. {PARIS}", request).samples
    assert not sample.tool_calls
    assert sample.finish_reason == "stop"


def test_tools_are_in_the_prompt_also_where_none_may_be_called():
    engine = ScriptedEngine(lambda prompt: "")
    auto, none = (
        prompt_ids(engine.tokenizer, GenerationRequest(HI, PARAMS, ToolUse([LOOK], choice)))
        for choice in ("auto", "none")
    )
    assert auto == none


def test_a_call_that_is_cut_off():
    request = GenerationRequest(HI, SamplingParams(max_tokens=12), ToolUse([LOOK]))
    (sample,) = answer_of(PARIS, request).samples
    assert sample.finish_reason == "length"


def test_log_probabilities_of_every_token():
    params = SamplingParams(max_tokens=400, logprobs=1)
    for text in ("plain text", f"text\n{PARIS}", "<think>\nhm\n</think>\nyes"):
        answer = answer_of(text, GenerationRequest(HI, params, ToolUse([LOOK])))
        (sample,) = answer.samples
        assert len(sample.logprobs) == answer.usage.completion_tokens
        written = b"".join(each.raw for each in sample.logprobs).decode()
        assert written.removesuffix("<|im_end|>").removesuffix("<|endoftext|>") == text


def test_samples_keep_apart():
    answer = answer_of("one two", GenerationRequest(HI, SamplingParams(n=3, max_tokens=50)))
    assert [sample.text for sample in answer.samples] == ["one two"] * 3


def test_stop_sequence():
    request = GenerationRequest(HI, SamplingParams(max_tokens=50, stop=["END"]))
    (sample,) = answer_of("some END more", request).samples
    assert (sample.text, sample.finish_reason, sample.stop_sequence) == ("some ", "stop", "END")


def test_fill_in_the_middle_ends_with_its_control_tokens():
    request = GenerationRequest(FimPrompt("def f(", "return x"), PARAMS)
    (sample,) = answer_of("x):\n    <|file_sep|>other", request).samples
    assert sample.text == "x):\n    "


def test_what_is_wrong_is_said_before_the_first_event():
    request = GenerationRequest(ChatPrompt([{"role": "nobody", "content": "x"}]), PARAMS)
    with pytest.raises(UsageError, match="nobody"):
        events_of("x", request)


def test_streamed_arguments_join_to_the_call():
    events = events_of(f"{PARIS}\n{ROME}", GenerationRequest(HI, PARAMS, ToolUse([LOOK])))
    joined: dict[int, str] = {}
    for event in events:
        if type(event).__name__ == "ArgumentsDelta":
            joined[event.call] = joined.get(event.call, "") + event.text
    ends = {event.call: event.tool_call.arguments for event in events if isinstance(event, CallEnd)}
    assert {call: json.loads(text) for call, text in joined.items()} == ends
    assert not any(isinstance(event, ReasoningDelta) for event in events)
