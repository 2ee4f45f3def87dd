"""A request: a prompt, what is asked of it, and the sequences that answer it. No torch here."""

import itertools
import time
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codemill.chat.tokenizer import Tokenizer
from codemill.config import ModelConfig
from codemill.engine.generation_config import GenerationConfig, as_token_ids
from codemill.engine.grammar import GrammarCompiler
from codemill.engine.outputs import RequestMetrics, RequestOutput
from codemill.engine.prompts import Prompt, check_prompt
from codemill.engine.sampling_params import SamplingParams
from codemill.engine.sequence import Sequence, SequenceLimits
from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill.models.lora import LoraAdapter

DEFAULT_MAX_TOKENS = 1024


@dataclass(frozen=True)
class Request:
    """A prompt and the sequences that answer it: `n` of them, or `best_of`. `start` is when it was made."""

    prompt: Prompt
    params: SamplingParams
    sequences: list[Sequence]
    start: float

    @property
    def is_finished(self) -> bool:
        return all(sequence.finish_reason is not None for sequence in self.sequences)

    def raise_error(self) -> None:
        """Raise the error of a sequence that failed, if one did."""
        for sequence in self.sequences:
            if sequence.error is not None:
                raise sequence.error

    def output(self) -> RequestOutput:
        """The result, all sequences being finished."""
        outputs = [sequence.output() for sequence in self._best()]
        prompt_logprobs = None
        if self.params.prompt_logprobs is not None:
            prompt_logprobs = [None, *self.sequences[0].prompt_logprobs]
        prompt = self.prompt
        hidden_state = self.sequences[0].hidden_state
        return RequestOutput(
            prompt.text, list(prompt.token_ids), outputs, self.metrics(), prompt_logprobs, hidden_state
        )

    def metrics(self) -> RequestMetrics:
        """Counts and times of the finished request."""
        first = min(self.sequences, key=lambda sequence: sequence.start_time)
        # A sequence that was aborted early has no first token.
        first_token_times = [s.first_token_time or s.finish_time for s in self.sequences]
        return RequestMetrics(
            num_prompt_tokens=len(self.prompt.token_ids),
            num_output_tokens=sum(len(sequence.token_ids) for sequence in self.sequences),
            first_token_seconds=min(first_token_times) - self.start,
            total_seconds=max(sequence.finish_time for sequence in self.sequences) - self.start,
            num_cached_tokens=first.num_reused,
            queue_seconds=max(0.0, (first.start_time or first.finish_time) - self.start),
        )

    def _best(self) -> list[Sequence]:
        """The `n` samples to give back; of `best_of` those that are likeliest per token, best first."""
        if self.params.best_of is None:
            return self.sequences
        best = sorted(self.sequences, key=lambda sequence: sequence.mean_logprob, reverse=True)[: self.params.n]
        for index, sequence in enumerate(best):
            sequence.index = index
        return best


class RequestBuilder:
    """Checks prompts and parameters against a model, and completes them with its defaults."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        defaults: GenerationConfig,
        max_model_len: int | None = None,
        seed: int = 0,
    ) -> None:
        """Raises UsageError if the model has no context of `max_model_len` tokens, or if `seed` is no integer."""
        if not isinstance(seed, int):
            raise UsageError(f"seed = {seed!r}: must be an integer")
        self.max_model_len = context_length(config, max_model_len)
        self._vocab_size = config.vocab_size
        self._tokenizer = tokenizer
        self._defaults = defaults
        self._seed = seed
        self._numbers = itertools.count()
        configured = (*defaults.eos_token_ids, *as_token_ids(config.eos_token_id, "config.json"))
        eos_token_ids = (*configured, *tokenizer.eos_token_ids)
        self._eos_token_ids = frozenset(i for i in eos_token_ids if 0 <= i < config.vocab_size)
        self._grammars = GrammarCompiler(tokenizer, config.vocab_size, self._eos_token_ids)

    def build(
        self,
        prompt: Prompt,
        params: SamplingParams,
        name: str = "the prompt",
        priority: int = 0,
        adapter: "LoraAdapter | None" = None,
        seeds: SequenceOf[str] | None = None,
    ) -> Request:
        """The request for `prompt`, called `name` in the UsageError raised if it cannot be served.

        seeds: one for each sequence, where they were made elsewhere.
        """
        start = time.perf_counter()
        check_prompt(prompt, name, self._vocab_size, self.max_model_len)
        _check_ids("stop_token_ids", params.stop_token_ids, self._vocab_size)
        _check_ids("logit_bias", list(params.logit_bias or ()), self._vocab_size)
        seed = f"{self._seed}/{next(self._numbers)}" if params.seed is None else str(params.seed)
        seeds = seeds or [f"{seed}/{index}" for index in range(params.best_of or params.n)]
        grammar = None if params.structured_output is None else self._grammars.compile(params.structured_output)
        sequences = [
            Sequence(
                prompt_token_ids=prompt.token_ids,
                params=params,
                distribution=self._defaults.distribution(params),
                limits=self._limits(prompt, params),
                tokenizer=self._tokenizer,
                seed=each_seed,
                index=index,
                priority=priority,
                adapter=adapter,
                grammar=None if grammar is None else grammar.start(),
            )
            for index, each_seed in enumerate(seeds)
        ]
        return Request(prompt, params, sequences, start)

    def _limits(self, prompt: Prompt, params: SamplingParams) -> SequenceLimits:
        ignores_eos = params.ignore_eos and params.structured_output is None
        max_tokens = params.max_tokens or self._defaults.max_new_tokens or DEFAULT_MAX_TOKENS
        return SequenceLimits(
            max_tokens=min(max_tokens, self.max_model_len - len(prompt.token_ids)),
            # A grammar that is complete has nothing else to offer than the end of text.
            eos_token_ids=frozenset() if ignores_eos else self._eos_token_ids,
            stop_token_ids=frozenset(params.stop_token_ids),
        )


def params_for_each(params: Any, num_prompts: int) -> list[SamplingParams]:
    """One SamplingParams for each prompt, given one for all, a list, or None. Raises UsageError."""
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params] * num_prompts
    if not isinstance(params, SequenceOf) or not all(isinstance(each, SamplingParams) for each in params):
        raise UsageError(f"params is of type {type(params).__name__}: give a SamplingParams, or a list of them")
    if len(params) != num_prompts:
        raise UsageError(f"{len(params)} params for {num_prompts} prompts: give one for all, or one for each")
    return list(params)


def context_length(config: ModelConfig, max_model_len: int | None = None) -> int:
    """Tokens of prompt and answer together: `max_model_len`, or all the model has. Raises UsageError beyond that."""
    longest = config.max_position_embeddings
    yarn = config.rope.yarn
    if yarn is not None:  # configurations may keep the original length beside the factor that extends it
        longest = max(longest, int(yarn.factor * yarn.original_max_position_embeddings))
    if max_model_len is None:
        return longest
    if not isinstance(max_model_len, int) or isinstance(max_model_len, bool) or max_model_len < 2:
        raise UsageError(f"max_model_len = {max_model_len!r}: must be an integer of at least 2")
    if max_model_len > longest:
        raise UsageError(f"max_model_len = {max_model_len}: the model's context has {longest} tokens")
    return max_model_len


def _check_ids(name: str, token_ids: SequenceOf[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise UsageError(f"{name}: token id {token_id} is outside the vocabulary, ids 0 to {vocab_size - 1}")
