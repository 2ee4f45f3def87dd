"""The policy answers prompts, through the engine that serves models."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from codemill.chat.tokenizer import Tokenizer
from codemill.engine.llm import LLM
from codemill.engine.sampling_params import SamplingParams
from codemill.train.policy import Policy

_ADAPTER = "policy"


def sample_answers(
    policy: Policy,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    context: int,
) -> list[list[int]]:
    """Token ids of an answer to each prompt, from the policy's own distribution at this temperature, unfiltered.

    An answer ends with the token that ended it, or after max_new_tokens, or where prompt and answer fill `context`.
    The same weights, prompts and seeds give the same answers.
    """
    params = [
        SamplingParams(
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            repetition_penalty=1.0,
            seed=seed,
            max_tokens=max_new_tokens,
        )
        for seed in seeds
    ]
    with _engine(policy, tokenizer, context) as (llm, adapter):
        outputs = llm.generate([list(prompt) for prompt in prompts], params, adapter)
    return [list(output.outputs[0].token_ids) for output in outputs]


@contextmanager
def _engine(policy: Policy, tokenizer: Tokenizer, context: int) -> Iterator[tuple[LLM, str | None]]:
    """A new one each time: nothing that it remembers was computed with other weights."""
    with TemporaryDirectory() as directory:
        llm = LLM.from_parts(policy.model, tokenizer, max_model_len=context)
        adapter = None
        if policy.adapter is not None:
            policy.adapter.save(Path(directory) / _ADAPTER, "")
            llm.add_adapter(_ADAPTER, Path(directory) / _ADAPTER)
            adapter = _ADAPTER
        try:
            yield llm, adapter
        finally:
            llm.close()


def answer_seeds(seed: int, step: int, indices: Sequence[int]) -> list[int]:
    """A seed for the answer to each of these prompts in a step, whichever process gives it."""
    return [int(np.random.SeedSequence((seed, step, index)).generate_state(1)[0]) for index in indices]
