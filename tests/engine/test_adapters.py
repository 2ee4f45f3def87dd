"""Requests of one batch with different adapters get what each would alone; adapters do not share cached prompts."""

import peft
import pytest
import torch

from codemill import LLM, SamplingParams
from codemill.errors import CodemillError, UsageError
from models.reference import make_ours, make_reference

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)
MODULES = {
    "qwen3": ["q_proj", "v_proj", "down_proj"],
    "qwen3_moe": ["k_proj", "o_proj", "lm_head"],
    "qwen3_next": ["in_proj_qkvz", "out_proj", "q_proj"],
}


@pytest.fixture(scope="module", params=list(MODULES))
def adapted(request, tokenizer, tmp_path_factory):
    """An LLM with two adapters, and the reference with each of them merged in."""
    family, merged = request.param, {}
    llm = LLM.from_parts(make_ours(make_reference(family, vocab_size=320)), tokenizer, block_size=4)
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        settings = {"r": 4, "lora_alpha": 16, "init_lora_weights": False, "target_modules": MODULES[family]}
        model = peft.get_peft_model(make_reference(family, vocab_size=320), peft.LoraConfig(**settings))
        directory = tmp_path_factory.mktemp(name)
        model.save_pretrained(directory)
        llm.add_adapter(name, directory)
        merged[name] = LLM.from_parts(make_ours(model.merge_and_unload()), tokenizer)
    merged[None] = LLM.from_parts(llm.model, tokenizer)
    return llm, merged


def test_each_request_of_a_batch_has_its_own(adapted):
    llm, merged = adapted
    prompts = [[5, 6, 7] * 9, [5, 6, 7] * 9, [8] * 3, [5, 6, 7] * 9, [9, 8] * 20]
    names = ["first", None, "second", "second", "first"]
    outputs = llm.generate(prompts, GREEDY, adapter=names)
    expected = [merged[name].generate([prompt], GREEDY)[0] for name, prompt in zip(names, prompts, strict=True)]
    assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in expected]
    assert len({tuple(o.outputs[0].token_ids) for o in outputs[:2]}) == 2, "the adapter changes nothing"


def test_a_cached_prompt_is_of_its_adapter(adapted):
    llm, merged = adapted
    prompt = [[40, 41, 42, 43, 44] * 8]
    for name in ("first", "second", None, "first"):
        (output,) = llm.generate(prompt, GREEDY, adapter=name)
        assert output.outputs == merged[name].generate(prompt, GREEDY)[0].outputs
    assert output.metrics.num_cached_tokens == 36
    assert (
        "".join(llm.stream(prompt[0], GREEDY, adapter="second"))
        == merged["second"].generate(prompt, GREEDY)[0].outputs[0].text
    )


def test_logprobs_of_the_prompt_are_the_adapters(adapted):
    llm, merged = adapted
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    found, expected = (
        each.generate([[7] * 9], params, adapter=name)[0] for each, name in ((llm, "first"), (merged["first"], None))
    )
    for mine, theirs in zip(found.prompt_logprobs[1:], expected.prompt_logprobs[1:], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_unknown_adapters_are_one_line(adapted, tmp_path):
    llm, _ = adapted
    with pytest.raises(UsageError, match="unknown adapter 'frist': choose one of first"):
        llm.generate([[1]], adapter="frist")
    with pytest.raises(UsageError, match="1 adapters for 2 prompts"):
        llm.generate([[1], [2]], adapter=["first"])
    with pytest.raises(CodemillError, match=r"adapter_config\.json"):
        llm.add_adapter("third", tmp_path)
    with pytest.raises(UsageError, match="unknown adapter 'third'"):
        llm.remove_adapter("third")
