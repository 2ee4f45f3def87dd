"""The policy answers prompts, through the engine that serves models."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from codemill.chat.tokenizer import Tokenizer
from codemill.engine.llm import LLM
from codemill.engine.sampling_params import SamplingParams
from codemill.train.policy import Policy

_ADAPTER = "policy"


class AnswerSampler:
    """Answers of a policy as it stands, from its own distribution, unfiltered.

    One engine serves all calls, on the weights that are trained. Between two of them it sleeps: it holds no memory, and
    remembers nothing that was computed with other weights.
    """

    def __init__(self, policy: Policy, tokenizer: Tokenizer, context: int) -> None:
        self.policy, self.tokenizer, self.context = policy, tokenizer, context

    def answers(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> list[list[int]]:
        """Token ids of an answer to each prompt, at this temperature.

        An answer ends with the token that ended it, or after max_new_tokens, or where prompt and answer fill the
        context. The same weights, prompts and seeds give the same answers.
        """
        params = [_unfiltered(seed, max_new_tokens, temperature) for seed in seeds]
        with self._awake() as (llm, adapter):
            outputs = llm.generate([list(prompt) for prompt in prompts], params, adapter)
        return [list(output.outputs[0].token_ids) for output in outputs]

    @cached_property
    def _llm(self) -> LLM:
        return LLM.from_parts(self.policy.model, self.tokenizer, max_model_len=self.context)

    @contextmanager
    def _awake(self) -> Iterator[tuple[LLM, str | None]]:
        """The engine, and the name of the adapter that its requests are to take."""
        self._llm.wake()
        try:
            yield self._llm, self._load_adapter()
        finally:
            self._llm.sleep()

    def _load_adapter(self) -> str | None:
        """Give the engine the policy's adapter as a server would get it."""
        if self.policy.adapter is None:
            return None
        with TemporaryDirectory() as directory:
            self.policy.adapter.save(Path(directory), "")
            self._llm.add_adapter(_ADAPTER, directory)
        return _ADAPTER


def _unfiltered(seed: int, max_new_tokens: int, temperature: float) -> SamplingParams:
    return SamplingParams(
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        seed=seed,
        max_tokens=max_new_tokens,
    )


def answer_seeds(seed: int, step: int, indices: Sequence[int]) -> list[int]:
    """A seed for the answer to each of these prompts in a step, whichever process gives it."""
    return [int(np.random.SeedSequence((seed, step, index)).generate_state(1)[0]) for index in indices]
