"""How a model in this process is asked: the embedded one, in fp32 so that batches do not decide near ties."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from codemill import LLM, SamplingParams
from codemill.chat import fim_ids
from codemill.errors import CodemillError
from codemill.eval.generation import (
    Generated,
    GenerationRequest,
    Sampling,
    make_request,
    prompt_text,
    sample_seed,
)
from codemill.eval.local_generation import BATCH, LocalGenerator
from codemill.eval.suite import Problem, Prompt
from eval.tiny import TinySuite

CODE = "def add(first, second):\n    return first + second\n\n\ndef double(value):\n"
GREEDY = Sampling()


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(dtype="float32")


@pytest.fixture(scope="module")
def short_llm() -> LLM:
    return LLM(dtype="float32", max_model_len=64)


def request(prompt: Prompt, index: int = 0, seed: int = 1, may_cut: bool = False) -> GenerationRequest:
    return GenerationRequest("T/0", index, prompt, seed, may_cut)


def only(llm: LLM, each: GenerationRequest, sampling: Sampling = GREEDY) -> Generated:
    (result,) = LocalGenerator(llm, sampling).generate([each])
    return result


def test_a_seed_depends_on_base_task_and_index_only() -> None:
    seeds = {sample_seed(base, task, index) for base in (0, 1) for task in ("a", "b/1", "\ud800") for index in range(5)}
    assert len(seeds) == 30
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert sample_seed(0, "HumanEval/0", 0) == sample_seed(0, "HumanEval/0", 0)


def test_the_request_of_a_problem() -> None:
    problem = Problem("T/1", {"prompt": "value = "})
    made = make_request(TinySuite(), problem, 3, "base", 7)
    assert (made.task_id, made.index, made.seed, made.may_cut) == ("T/1", 3, sample_seed(7, "T/1", 3), False)
    assert made.prompt.text == "value = "
    assert make_request(TinySuite(), problem, 0, "fim", 7).may_cut


def test_base_continues_the_text(llm: LLM) -> None:
    prompt = Prompt(text=CODE, stop=("\n",), max_tokens=20)
    result = only(llm, request(prompt))
    expected = llm.generate(CODE, SamplingParams(temperature=0, max_tokens=20, stop=["\n"]))[0].outputs[0]
    assert (result.text, result.finish_reason, result.error) == (expected.text, expected.finish_reason, None)
    assert result.text
    assert "\n" not in result.text


def test_fim_fills_the_hole(llm: LLM) -> None:
    result = only(llm, request(Prompt(prefix=CODE, suffix="\n\n\nprint(double(2))\n", max_tokens=20)))
    ids = fim_ids(llm.tokenizer, CODE, "\n\n\nprint(double(2))\n")
    params = SamplingParams(temperature=0, max_tokens=20, stop_token_ids=llm.tokenizer.fim_stop_ids)
    assert result.text == llm.generate([ids], params)[0].outputs[0].text
    assert result.note == ""


def test_chat_answers_messages(llm: LLM) -> None:
    messages = ({"role": "user", "content": "Write a function that adds two numbers."},)
    tools = ({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},)
    for given in (None, tools):
        result = only(llm, request(Prompt(messages=messages, tools=given, max_tokens=12)))
        expected = llm.chat(messages, SamplingParams(temperature=0, max_tokens=12), tools=given)[0].outputs[0]
        assert result.text == expected.text
        assert result.finish_reason == expected.finish_reason


def test_length_is_reported(llm: LLM) -> None:
    assert only(llm, request(Prompt(text=CODE, max_tokens=2))).finish_reason == "length"
    assert only(llm, request(Prompt(text=CODE, max_tokens=50)), Sampling(max_tokens=2)).finish_reason == "length"


def test_samples_depend_on_their_seeds_alone(llm: LLM) -> None:
    sampling = Sampling(temperature=1.0)
    requests = [request(Prompt(text=CODE, max_tokens=12), index, seed=index % 3) for index in range(BATCH + 3)]
    results = {r.request.index: r.text for r in LocalGenerator(llm, sampling).generate(requests)}
    assert len(results) == BATCH + 3
    assert all(results[index] == results[index % 3] for index in results)
    assert len(set(results.values())) == 3
    assert only(llm, requests[4], sampling).text == results[4]


def test_results_come_before_all_are_done(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    generate = LLM.generate
    monkeypatch.setattr(LLM, "generate", lambda self, *args: calls.append(1) or generate(self, *args))
    prompt = Prompt(text=CODE, max_tokens=1)
    results = LocalGenerator(llm, GREEDY).generate([request(prompt, i) for i in range(2 * BATCH)])
    next(results)
    assert len(calls) == 1
    assert len(list(results)) == 2 * BATCH - 1
    assert len(calls) == 2


def test_the_checkpoints_own_defaults_do_not_count(llm: LLM) -> None:
    params = LocalGenerator(llm, Sampling(0.5, 0.9))._params
    from codemill.eval.local_generation import _Ready

    made = params(_Ready(request(Prompt(text="x", stop=("a",), max_tokens=9)), [1]))
    assert (made.temperature, made.top_p, made.top_k, made.min_p, made.repetition_penalty) == (0.5, 0.9, 0, 0.0, 1.0)
    assert (made.seed, made.max_tokens, tuple(made.stop or ())) == (1, 9, ("a",))


LONG = "value = 1\n" * 200


def test_a_prompt_that_does_not_fit_is_an_error_of_its_own(short_llm: LLM) -> None:
    requests = [
        request(Prompt(text=LONG, max_tokens=4), 0),
        request(Prompt(text="x = ", max_tokens=4), 1),
        request(Prompt(messages=({"role": "user", "content": LONG},)), 2, may_cut=True),
        request(Prompt(text="", max_tokens=4), 3),
        request(Prompt(prefix="", suffix="", max_tokens=4), 4),
        request(Prompt(messages=({"role": "nobody", "content": "x"},)), 5),
    ]
    results = {r.request.index: r for r in LocalGenerator(short_llm, GREEDY).generate(requests)}
    assert results[1].error is None
    for index in (0, 2):  # the model's own limit, which counts against it
        assert "context holds 64" in (results[index].unable or "")
    for index, named in ((3, "empty"), (4, "empty"), (5, "nobody")):
        assert named in (results[index].error or "")
    assert all(results[index].text == "" for index in (0, 2, 3, 4, 5))


def test_a_prompt_that_leaves_little_room_is_asked(short_llm: LLM) -> None:
    """Leaving it out would flatter the model."""
    ids = short_llm.tokenizer.encode(LONG)[:63]
    text = short_llm.tokenizer.decode(ids)
    assert len(short_llm.tokenizer.encode(text)) == 63
    result = only(short_llm, request(Prompt(text=text, max_tokens=30)))
    assert (result.error, result.finish_reason) == (None, "length")


def test_a_prompt_that_may_be_cut_loses_its_beginning(short_llm: LLM) -> None:
    text = "first = 0\n" + LONG
    result = only(short_llm, request(Prompt(text=text, max_tokens=8), may_cut=True))
    ids = short_llm.tokenizer.encode(text)
    kept = ids[-56:]
    expected = short_llm.generate([kept], SamplingParams(temperature=0, max_tokens=8))[0].outputs[0]
    assert result.text == expected.text
    assert f"{len(ids) - 56} tokens of it were left out" in result.note


def test_a_hole_in_a_long_file_keeps_its_surroundings(short_llm: LLM) -> None:
    each = request(Prompt(prefix=LONG + "before = ", suffix="\nafter = 2\n" + LONG, max_tokens=8), may_cut=True)
    result = only(short_llm, each)
    assert result.error is None
    assert "were left out" in result.note
    assert "takes" in (only(short_llm, request(each.prompt)).error or "")


def test_a_hole_in_a_repository_has_as_many_files_as_fit(llm: LLM) -> None:
    files = (("far.py", LONG[: len(LONG) // 2]), ("near.py", "value = 1\n"))
    for kept, budget in ((files, 1024), (files[1:], 120), ((), 40)):
        shorter = LLM(dtype="float32", max_model_len=budget)
        prompt = Prompt(prefix=CODE, suffix="\n", context_files=files, path="a.py", repo_name="repo", max_tokens=8)
        result = only(shorter, request(prompt, may_cut=True))
        ids = fim_ids(llm.tokenizer, CODE, "\n", "repo", kept, "a.py")
        params = SamplingParams(temperature=0, max_tokens=8, stop_token_ids=llm.tokenizer.fim_stop_ids)
        assert len(ids) <= budget - 8
        assert result.text == llm.generate([ids], params)[0].outputs[0].text
        assert result.note == ""


def test_a_template_that_opens_the_reasoning(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from codemill.chat import Tokenizer

    render = Tokenizer.render

    def opened(self: Tokenizer, messages: Sequence[Mapping[str, Any]], *args: Any, **kwargs: Any) -> str:
        return render(self, messages, *args, **kwargs) + "<think>\n"

    monkeypatch.setattr(Tokenizer, "render", opened)
    result = only(llm, request(Prompt(messages=({"role": "user", "content": "Hello"},), max_tokens=3)))
    assert result.text.startswith("<think>\n")


def test_a_model_of_nan_ends_the_run(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = type(llm.model).logits
    monkeypatch.setattr(type(llm.model), "logits", lambda self, *rows: logits(self, *rows) * float("nan"))
    with pytest.raises(CodemillError, match="NaN"):
        only(llm, request(Prompt(text=CODE, max_tokens=2)))


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        (Prompt(text="a\nb"), "a\nb"),
        (Prompt(prefix="a(", suffix=")"), "a(⟨…⟩)"),
        (
            Prompt(messages=({"role": "system", "content": "s"}, {"role": "user", "content": "u"})),
            "[system]\ns\n\n[user]\nu",
        ),
    ],
)
def test_prompts_as_readers_see_them(prompt: Prompt, shown: str) -> None:
    assert prompt_text(prompt) == shown
