"""The prefix cache in whole engines of the three families: what is reused, when nothing may be, and equal outputs."""

import random

import pytest
import torch

from codemill import LLM, SamplingParams
from codemill.engine.outputs import RequestOutput
from codemill.engine.prompts import Prompt
from codemill.engine.request import Request
from codemill.models import CausalLM
from engine.conftest import VOCAB_SIZE

SIZE = 8
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


def fresh(llm: LLM, **options) -> LLM:
    """The same model behind an engine of its own, with nothing in its cache."""
    options = {"block_size": SIZE, "state_interval": 4 * SIZE, **options}
    return LLM.from_parts(llm.model, llm.tokenizer, **options)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB_SIZE), k=length)


def ask(llm: LLM, prompt: list[int], params: SamplingParams = GREEDY) -> RequestOutput:
    return llm.generate([prompt], params)[0]


def tokens_of(output: RequestOutput) -> list[list[int]]:
    return [each.token_ids for each in output.outputs]


def add(llm: LLM, prompt: list[int], params: SamplingParams = GREEDY, priority: int = 0) -> Request:
    request = llm.builder.build(Prompt(None, tuple(prompt)), params, priority=priority)
    llm.engine.add(request)
    return request


def run(llm: LLM) -> None:
    while not llm.engine.is_idle:
        llm.engine.step()


def count_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each pass from now on."""
    counts: list[int] = []
    compute = CausalLM.compute

    def counting(model: CausalLM, input_ids: torch.Tensor, *args: object) -> torch.Tensor:
        counts.append(input_ids.numel())
        return compute(model, input_ids, *args)

    monkeypatch.setattr(CausalLM, "compute", counting)
    return counts


# What is reused


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 100])
def test_a_prompt_that_comes_again_is_reused_but_for_its_last_block(llm, length):
    own = fresh(llm)
    first, second = ask(own, prompt_of(length)), ask(own, prompt_of(length))
    assert first.metrics.num_cached_tokens == 0
    assert second.metrics.num_cached_tokens == (length - 1) // SIZE * SIZE
    assert tokens_of(first) == tokens_of(second)


def test_only_what_is_not_cached_is_computed(llm, monkeypatch):
    own = fresh(llm)
    ask(own, prompt_of(100))
    counts = count_tokens(monkeypatch)
    ask(own, prompt_of(100), SamplingParams(max_tokens=1))
    assert counts == [4]


def test_samples_of_a_prompt_compute_it_once(llm, monkeypatch):
    own, params = fresh(llm), SamplingParams(max_tokens=1, n=5, temperature=1.0, seed=3)
    counts = count_tokens(monkeypatch)
    output = ask(own, prompt_of(100), params)
    assert sum(counts) == 100 + 4 * 4
    assert output.metrics.num_cached_tokens == 0, "what its other samples reuse was not there before"
    assert ask(own, prompt_of(100), params).metrics.num_cached_tokens == 96


def test_a_conversation_grows(llm):
    """Each prompt is the one before with its answer and more; all of that but the last block is found."""
    own = fresh(llm)
    prompt, num_known = prompt_of(50), 1
    for turn in range(5):
        output = ask(own, prompt)
        assert output.metrics.num_cached_tokens >= (num_known - 1) // SIZE * SIZE
        assert tokens_of(output) == tokens_of(ask(fresh(llm), prompt))
        num_known = len(prompt) + 12
        prompt = [*prompt, *output.outputs[0].token_ids, *prompt_of(9, seed=turn + 1)]


def test_a_common_beginning_is_reused_by_other_prompts(llm):
    """Up to the state that is kept every 32 tokens where the model has states."""
    own = fresh(llm)
    ask(own, prompt_of(100))
    other = [*prompt_of(100)[:70], *prompt_of(20, seed=1)]
    output = ask(own, other)
    assert output.metrics.num_cached_tokens == (64 if own.model.config.is_hybrid else 64 + 70 % 32 // SIZE * SIZE)
    assert tokens_of(output) == tokens_of(ask(fresh(llm), other))


def test_a_cancelled_prefill_keeps_what_it_computed(llm):
    own = fresh(llm, max_num_batched_tokens=24)
    request = add(own, prompt_of(200))
    for _ in range(4):
        own.engine.step()
    own.engine.abort(request)
    assert not request.sequences[0].token_ids
    output = ask(own, prompt_of(200))
    assert output.metrics.num_cached_tokens == 96
    assert tokens_of(output) == tokens_of(ask(fresh(llm), prompt_of(200)))


def test_an_interrupted_answer_is_reused(llm):
    own = fresh(llm)
    stream = own.stream(prompt_of(40), SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True))
    tokens = []
    while len(tokens) < 30:
        tokens += next(stream).token_ids
    stream.close()
    output = ask(own, [*prompt_of(40), *tokens])
    assert output.metrics.num_cached_tokens >= 64
    assert tokens_of(output) == tokens_of(ask(fresh(llm), [*prompt_of(40), *tokens]))


# What is not


def test_nothing_is_reused_with_other_weights(llm):
    model = CausalLM(llm.model.config)
    model.load_state_dict(llm.model.state_dict())
    own = LLM.from_parts(model.eval().requires_grad_(False), llm.tokenizer, block_size=SIZE, state_interval=SIZE)
    before = ask(own, prompt_of(100))
    own.update_weights({"model.norm.weight": torch.linspace(-1, 1, 32)})
    after = ask(own, prompt_of(100))
    assert after.metrics.num_cached_tokens == 0
    assert tokens_of(after) != tokens_of(before)
    assert ask(own, prompt_of(100)).metrics.num_cached_tokens == 96


def test_nothing_is_reused_after_sleep(llm):
    own = fresh(llm)
    before = ask(own, prompt_of(100))
    own.sleep()
    own.wake()
    after = ask(own, prompt_of(100))
    assert after.metrics.num_cached_tokens == 0
    assert tokens_of(after) == tokens_of(before)


def test_without_a_prefix_cache_everything_is_computed(llm):
    own = fresh(llm, enable_prefix_cache=False)
    assert [ask(own, prompt_of(100)).metrics.num_cached_tokens for _ in range(2)] == [0, 0]
    assert own.engine.cache.blocks.num_used == 0


# Log-probabilities of the prompt


def logprobs_of(output: RequestOutput) -> list[float]:
    assert output.prompt_logprobs is not None
    return [value for each in output.prompt_logprobs[1:] for value in (each or {}).values()]


SCORED = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, prompt_logprobs=0)


def test_a_prompt_is_computed_whole_for_its_logprobs(llm):
    own = fresh(llm, max_num_batched_tokens=24)
    ask(own, prompt_of(100))
    output = ask(own, prompt_of(100), SCORED)
    assert output.metrics.num_cached_tokens == 0
    assert len(output.prompt_logprobs) == 100
    assert logprobs_of(output) == pytest.approx(logprobs_of(ask(fresh(llm), prompt_of(100), SCORED)), abs=1e-4)
    assert ask(own, prompt_of(100)).metrics.num_cached_tokens == 96, "what it computed is there for others"


@pytest.mark.parametrize("why", ["preempted", "asleep", "failed"])
def test_a_prompt_that_starts_again_has_its_logprobs_once(llm, why, monkeypatch):
    own = fresh(llm, max_num_batched_tokens=24, max_num_seqs=1)
    request = add(own, prompt_of(100), SCORED, priority=1)
    for _ in range(2):
        own.engine.step()
    if why == "preempted":
        add(own, prompt_of(20, seed=1), priority=0)
    elif why == "asleep":
        own.sleep()
        own.wake()
    else:
        with monkeypatch.context() as patch:
            patch.setattr(CausalLM, "compute", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                own.engine.step()
    run(own)
    output = request.output()
    assert len(output.prompt_logprobs) == 100
    assert logprobs_of(output) == pytest.approx(logprobs_of(ask(fresh(llm), prompt_of(100), SCORED)), abs=1e-4)


# Equal outputs


@pytest.mark.parametrize("shaping", [{"temperature": 0.0}, {"temperature": 1.0, "repetition_penalty": 1.2}])
def test_outputs_are_equal_with_and_without_the_cache(llm, shaping):
    rng = random.Random(0)
    prompts = [prompt_of(60)]
    for _ in range(15):
        base = rng.choice(prompts)
        prompts.append([*base[: rng.randint(0, len(base))], *rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 30))])
    each = [SamplingParams(max_tokens=10, ignore_eos=True, seed=seed, **shaping) for seed in range(len(prompts))]
    small = {"max_num_batched_tokens": 64, "max_mixed_tokens": 16, "max_num_seqs": 5}
    cached, plain = fresh(llm, **small), fresh(llm, **small, enable_prefix_cache=False)
    outputs = cached.generate(prompts, each)
    assert list(map(tokens_of, outputs)) == list(map(tokens_of, plain.generate(prompts, each)))
    assert sum(output.metrics.num_cached_tokens for output in outputs) > 100
    again = cached.generate(prompts, each)
    assert list(map(tokens_of, outputs)) == list(map(tokens_of, again))


# On disk


def test_prompts_that_are_restored_together_are_not_mixed_up(llm, tmp_path):
    """More of them than there are slots for states, so that states are restored while others wait to be copied."""
    slots = {"max_num_seqs": 5, "max_state_checkpoints": 1, "max_num_batched_tokens": 2048}
    prompts = [prompt_of(60, seed=seed) for seed in range(8)]
    before = fresh(llm, prefix_cache_dir=tmp_path)
    expected = list(map(tokens_of, before.generate(prompts, GREEDY)))
    before.close()
    after = fresh(llm, prefix_cache_dir=tmp_path, **slots)
    for prompt in prompts[:2]:
        ask(after, prompt)
    outputs = after.generate(prompts, GREEDY)
    after.close()
    assert list(map(tokens_of, outputs)) == expected
