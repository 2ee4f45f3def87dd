"""What a request may ask for beyond plain samples: best of several, log-probabilities of the prompt, structure."""

import json
import threading

import jsonschema
import pytest
import torch

from codemill import LLM, SamplingParams
from codemill.engine.structured_output import StructuredOutput
from codemill.errors import UsageError
from codemill.models import CausalLM

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["add", "reverse"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "count"],
    "additionalProperties": False,
}


def test_logprobs_of_the_prompt_are_those_of_the_network(llm):
    prompt = [3, 77, 12, 290, 5, 5, 60] * 12
    llm.generate([prompt], SamplingParams(max_tokens=1))  # what the cache has of it must not be left out
    (output,) = llm.generate([prompt], SamplingParams(max_tokens=2, prompt_logprobs=3))
    expected = llm.model(torch.tensor([prompt]))[0].log_softmax(dim=-1)
    assert len(output.prompt_logprobs) == len(prompt)
    assert output.prompt_logprobs[0] is None
    for position, found in enumerate(output.prompt_logprobs[1:]):
        row, token = expected[position], prompt[position + 1]
        likeliest = row.topk(3).indices.tolist()
        assert next(iter(found)) == token
        assert set(found) == {token, *likeliest}
        assert found == pytest.approx({i: row[i].item() for i in found}, abs=1e-4)


def test_without_the_wish_there_are_no_logprobs_of_the_prompt(dense_llm):
    assert dense_llm.generate("a", SamplingParams(max_tokens=1))[0].prompt_logprobs is None


def test_the_best_of_several_samples(dense_llm):
    shaping = {"max_tokens": 6, "temperature": 1.5, "seed": 4, "ignore_eos": True}
    (every,) = dense_llm.generate("a", SamplingParams(n=8, logprobs=0, **shaping))
    (best,) = dense_llm.generate("a", SamplingParams(n=2, best_of=8, **shaping))
    order = sorted(every.outputs, key=lambda sample: sum(sample.logprobs) / len(sample.logprobs), reverse=True)
    assert [sample.token_ids for sample in best.outputs] == [sample.token_ids for sample in order[:2]]
    assert [sample.index for sample in best.outputs] == [0, 1]
    assert best.outputs[0].logprobs is None
    with pytest.raises(UsageError, match="best_of = 1: must be from n to 1024"):
        SamplingParams(n=2, best_of=1)


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_a_schema_is_obeyed(llm, temperature):
    wanted = StructuredOutput(json_schema=SCHEMA)
    params = SamplingParams(temperature=temperature, max_tokens=200, structured_output=wanted, n=4, seed=2)
    (output,) = llm.generate(["def add(first"], params)
    for sample in output.outputs:
        assert sample.finish_reason == "stop"
        jsonschema.validate(json.loads(sample.text), SCHEMA)


def test_a_forced_text_takes_few_passes(dense_llm):
    """Tokens that a grammar forces are computed together."""
    engine, before = dense_llm.engine, dense_llm.metrics["steps"]
    text = "for value in values: print(value) and then return values "
    params = SamplingParams(
        max_tokens=100, structured_output=StructuredOutput(regex=text.replace("(", r"\(").replace(")", r"\)") + "[01]")
    )
    (output,) = dense_llm.generate(["x"], params)
    assert output.outputs[0].text[:-1] == text
    assert len(output.outputs[0].token_ids) > 8
    assert engine.metrics.steps - before <= 5


def test_a_wrong_grammar_is_refused_before_anything_runs(dense_llm):
    with pytest.raises(UsageError, match="regex"):
        dense_llm.generate("a", SamplingParams(structured_output=StructuredOutput(regex="(")))
    with pytest.raises(UsageError, match="structured_output = 'x': must be a StructuredOutput"):
        SamplingParams(structured_output="x")


def test_urgent_requests_overtake(dense_llm):
    """Priorities are the engine's; a request of the builder carries one."""
    from codemill.engine.prompts import Prompt

    llm = LLM.from_parts(dense_llm.model, dense_llm.tokenizer, max_num_seqs=1)
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    requests = [llm.builder.build(Prompt(None, (i, 5)), params, priority=p) for i, p in enumerate((1, 1, 0, -5))]
    for request in requests:
        llm.engine.add(request)
    order = []
    while not llm.engine.is_idle:
        llm.engine.step()
        order += [i for i, request in enumerate(requests) if request.is_finished and i not in order]
    assert order == [3, 2, 0, 1]


def test_calls_from_several_threads_share_the_engine(dense_llm):
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    prompts = [[i, i + 1, 7] for i in range(6)]
    expected = [dense_llm.generate([prompt], params)[0].outputs for prompt in prompts]
    found = [None] * len(prompts)

    def ask(i: int) -> None:
        found[i] = dense_llm.generate([prompts[i]], params)[0].outputs

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


# Weights and memory


def copy_of(model: CausalLM) -> CausalLM:
    other = CausalLM(model.config)
    other.load_state_dict(model.state_dict())
    return other.eval().requires_grad_(False)


def test_new_weights_take_effect_at_once(llm):
    changed = LLM.from_parts(copy_of(llm.model), llm.tokenizer)
    params, prompt = SamplingParams(max_tokens=12, ignore_eos=True), [[4, 8, 15] * 20]
    before = changed.generate(prompt, params)[0].outputs
    new = {name: torch.randn_like(x) * x.std() for name, x in changed.model.state_dict().items() if x.dim() > 1}
    stream = changed.stream(prompt[0], params)
    next(stream)
    changed.update_weights(new)
    fresh = LLM.from_parts(copy_of(changed.model), llm.tokenizer)
    assert changed.generate(prompt, params)[0].outputs == fresh.generate(prompt, params)[0].outputs != before
    assert sum(len(piece.token_ids) for piece in stream) == 11, "a request that runs goes on"
    assert llm.generate(prompt, params)[0].outputs == before


def test_weights_by_their_names_on_disk(llm):
    from codemill.models.names import disk_views

    changed = LLM.from_parts(copy_of(llm.model), llm.tokenizer)
    parts = {
        part: torch.randn_like(view)
        for name, x in changed.model.named_parameters()
        for part, view in disk_views(name, x)
    }
    changed.update_weights(parts)
    for name, parameter in changed.model.named_parameters():
        assert all(torch.equal(view, parts[part]) for part, view in disk_views(name, parameter))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"model.norm.weight": torch.ones(3)}, r"model.norm.weight has the shape \(3,\), the network's \(32,\)"),
        ({"model.norms.weight": torch.ones(32)}, "the network has no weight 'model.norms.weight'"),
    ],
)
def test_wrong_weights_change_nothing(dense_llm, state, said):
    before = {name: x.clone() for name, x in dense_llm.model.state_dict().items()}
    with pytest.raises(UsageError, match=said):
        dense_llm.update_weights({"lm_head.weight": torch.zeros(320, 32), **state})
    assert all(torch.equal(x, before[name]) for name, x in dense_llm.model.state_dict().items())


def test_sleep_frees_the_cache_and_wake_goes_on(llm):
    sleeper = LLM.from_parts(llm.model, llm.tokenizer)
    params, prompt = SamplingParams(max_tokens=12, ignore_eos=True), [[4, 8, 15] * 20]
    stream = sleeper.stream(prompt[0], params)
    pieces = [next(stream)]
    sleeper.sleep()
    assert not sleeper.engine.runner.cache.layers
    with pytest.raises(Exception, match="the engine sleeps: wake it first"):
        sleeper.generate("a")
    sleeper.wake()
    pieces += stream
    expected = llm.generate(prompt, params)[0].outputs[0]
    assert [i for piece in pieces for i in piece.token_ids] == expected.token_ids
