"""Drives an engine with requests that come, go and share prompts, and holds each output to plain generation.

Plain generation is the oracle: one sequence alone, its prompt in one piece, a token at a time over a cache of its own,
with nothing of the engine's in it.
"""

import random
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from codemill.chat.tokenizer import Tokenizer
from codemill.engine.build import build_engine
from codemill.engine.generation_config import GenerationConfig
from codemill.engine.grammar import GrammarCompiler
from codemill.engine.memory import kv_bytes_per_token, state_bytes
from codemill.engine.prompts import Prompt
from codemill.engine.request import Request, RequestBuilder
from codemill.engine.sampling_params import SamplingParams
from codemill.engine.structured_output import StructuredOutput
from codemill.engine.token_mask import allowed_tokens
from codemill.engine_config import EngineConfig, SpeculativeConfig
from codemill.models import Cache, CausalLM
from codemill.models.mtp import MtpHead
from models.precision import in_fp64

LONGEST = 160  # tokens of prompt and output
TIE = 1e-4  # two logits as near as this may swap by rounding; tiny random models have logits of size 1 to 10
GRAMMARS = (
    None,
    None,
    StructuredOutput(choice=("return", "def add", "class Sequence:", "def append(self)")),
    StructuredOutput(regex=r"[a-f]{3,12}( = [0-9]{1,4})?"),
    StructuredOutput(
        json_schema={
            "type": "object",
            "properties": {"name": {"enum": ["first", "second"]}, "count": {"type": "integer"}},
            "required": ["name", "count"],
            "additionalProperties": False,
        }
    ),
)


class Plain:
    """One-at-a-time greedy generation, remembered."""

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, kv_dtype: torch.dtype | None = None) -> None:
        self.model = model
        self.kv_dtype = kv_dtype
        self.tokenizer = tokenizer
        self._eos = frozenset(tokenizer.eos_token_ids)
        self._grammars = GrammarCompiler(tokenizer, model.config.vocab_size, self._eos)
        self.generate = lru_cache(maxsize=None)(self._generate)

    @torch.inference_mode()
    def _generate(self, prompt: tuple[int, ...], max_tokens: int, structured: StructuredOutput | None) -> list[int]:
        cache = Cache.allocate(self.model.config, 1, LONGEST + 1, kv_dtype=self.kv_dtype)
        grammar = None if structured is None else self._grammars.compile(structured).start()
        tokens, feed = [], torch.tensor([prompt])
        while len(tokens) < max_tokens:
            logits = self.model(feed, cache)[0, -1]
            forced = [] if grammar is None else grammar.forced_tokens()
            if grammar is not None and not forced:
                allowed = allowed_tokens([grammar], len(logits), "cpu")[0]
                logits = logits.masked_fill(~allowed, float("-inf"))
            token = forced[0] if forced else int(logits.argmax())
            tokens.append(token)
            if token in self._eos:
                break
            if grammar is not None:
                grammar.accept(token)
                if grammar.is_finished:
                    break
            feed = torch.tensor([[token]])
        return tokens

    def is_tie(self, prompt: tuple[int, ...], output: list[int], one: int, other: int) -> bool:
        """Whether two tokens after prompt and output are so nearly as likely that rounding decides."""
        with in_fp64(self.model) as double:
            logits = double(torch.tensor([[*prompt, *output]]))[0, -1]
        if (logits[one] - logits[other]).abs() < TIE:
            return True
        # A router between two experts turns logits by more: then passes of other sizes prefer either token.
        ids = [*prompt, *output]
        passes = (self._logits(ids, first) for first in {1, len(prompt), len(ids) // 2, len(ids)})
        return len({bool(each[one] > each[other]) for each in passes}) == 2

    @torch.inference_mode()
    def _logits(self, ids: list[int], first: int) -> torch.Tensor:
        """Those of the last token, computed from a pass of `first` tokens and passes of one."""
        cache = Cache.allocate(self.model.config, 1, LONGEST + 1, kv_dtype=self.kv_dtype)
        logits = self.model(torch.tensor([ids[:first]]), cache)
        for token in ids[first:]:
            logits = self.model(torch.tensor([[token]]), cache)
        return logits[0, -1]


@dataclass
class Harness:
    """An engine over a tiny model, and everything it was asked."""

    plain: Plain
    options: dict[str, Any]
    draft: CausalLM | MtpHead | None = None
    requests: list[Request] = field(default_factory=list)
    num_ties: int = 0
    most_used: int = 0

    def __post_init__(self) -> None:
        built = build_engine(self.plain.model, EngineConfig.from_options(self.options), draft=self.draft)
        self.engine, self.longest = built.engine, built.max_model_len
        self._builder = RequestBuilder(self.plain.model.config, self.plain.tokenizer, GenerationConfig(), self.longest)

    def add(self, prompt: tuple[int, ...], max_tokens: int, **params: Any) -> Request:
        """Queue a greedy request; it is cut to what the cache can hold."""
        prompt = prompt[: self.longest - 2]
        priority = params.pop("priority", 0)
        asked = SamplingParams(temperature=0.0, max_tokens=max_tokens, **params)
        request = self._builder.build(Prompt(None, prompt), asked, priority=priority)
        self.engine.add(request)
        self.requests.append(request)
        return request

    def step(self) -> None:
        self.engine.step()
        self.check_accounts()

    def fail_one_pass(self) -> None:
        """The network fails when it has begun to change its caches."""
        model = self.plain.model
        layer = model.model.layers[-1]
        handle = layer.register_forward_pre_hook(_fail)
        try:
            self.engine.step()
        except OSError:
            pass
        finally:
            handle.remove()
        self.check_accounts()

    def finish(self) -> None:
        """Run until nothing is left, then compare and check that everything was given back."""
        for _ in range(100_000):
            if self.engine.is_idle:
                break
            self.step()
        assert self.engine.is_idle, "the engine does not come to an end"
        assert self.engine.cache.blocks.num_used == 0
        if self.engine.cache.states is not None:
            assert self.engine.cache.states.num_used == self.engine.cache.states.num_checkpoints
        for request in self.requests:
            self.compare(request)
        self.requests.clear()

    def compare(self, request: Request) -> None:
        """What the request got is what plain generation gives, or the beginning of it if it was aborted."""
        for sequence in request.sequences:
            assert sequence.error is None
            params, prompt = sequence.params, sequence.prompt_token_ids
            expected = self.plain.generate(prompt, sequence.limits.max_tokens, params.structured_output)
            found = sequence.token_ids
            if sequence.finish_reason == "abort":
                expected = expected[: len(found)]
            if found == expected:
                continue
            at = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
            assert at is not None, f"{len(found)} tokens for {len(expected)}: {found} {expected}"
            is_tie = self.plain.is_tie(prompt, found[:at], found[at], expected[at])
            assert is_tie, f"token {at} after {len(prompt)} prompt tokens: {found} instead of {expected}"
            self.num_ties += 1

    def check_accounts(self) -> None:
        """Every block is held as often as sequences name it, and no more blocks exist than were planned."""
        engine = self.engine
        blocks = engine.cache.blocks
        held = [block for s in engine.scheduler.running for block in s.cached.block_table]
        assert blocks.num_used == len(set(held))
        assert len(engine.scheduler.running) <= engine.cache.shape.max_num_seqs
        assert not any(sequence.cached.block_table for sequence in engine.scheduler.waiting)
        if engine.cache.states is not None:
            slots = [s.cached.state_slot for s in engine.scheduler.running]
            assert len(set(slots)) == len(slots)
            assert engine.cache.states.num_used == len(slots) + engine.cache.states.num_checkpoints
        self.most_used = max(self.most_used, blocks.num_used)


def _fail(*_: object) -> None:
    raise OSError("the pass fails here")


def random_options(rng: random.Random, model: CausalLM) -> dict[str, Any]:
    """Settings that make the engine's life hard: small steps, little memory, odd blocks."""
    block_size = rng.choice([1, 4, 8, 16])
    config, dtype = model.config, model.dtype
    room = int(LONGEST * rng.choice([1.0, 1.3, 2.5, 6.0]))
    num_states = rng.choice([2, 5, 12]) if state_bytes(config, dtype) else 0
    # States take at most half the budget, so either side may be what is short.
    budget = max(room * kv_bytes_per_token(config, dtype), num_states * state_bytes(config, dtype)) * (
        1 + bool(num_states)
    )
    return {
        "block_size": block_size,
        "kv_cache_bytes": budget,
        "max_num_seqs": rng.randint(1, 8),
        "max_num_batched_tokens": rng.choice([16, 33, 64, 512]),
        "max_mixed_tokens": rng.choice([1, 7, 24, 64]),
        "state_interval": block_size * rng.choice([1, 2, 5]),
        "max_state_checkpoints": rng.choice([None, 1, 4, 30]),
        "enable_prefix_cache": rng.random() < 0.8,
        "speculative": rng.choice([None, SpeculativeConfig("ngram", num_tokens=rng.choice([1, 4, 16]))]),
    }


def random_prompt(rng: random.Random, vocab_size: int, earlier: list[tuple[int, ...]]) -> tuple[int, ...]:
    """New, or with the beginning of an earlier one; often repetitive, so that there is something to look up."""
    length = rng.randint(1, LONGEST - 40)
    alphabet = rng.sample(range(vocab_size), rng.choice([3, 20, vocab_size]))
    prompt = tuple(rng.choices(alphabet, k=length))
    if earlier and rng.random() < 0.6:
        base = rng.choice(earlier)
        prompt = base[: rng.randint(1, len(base))] + prompt[: rng.choice([0, 0, 1, 5, 30])]
    return prompt[: LONGEST - 40] or (1,)


def drive(harness: Harness, rng: random.Random, num_requests: int) -> None:
    """Requests arrive at random, some are aborted, and at the end all are compared."""
    earlier: list[tuple[int, ...]] = []
    vocab_size = harness.plain.model.config.vocab_size
    for _ in range(num_requests):
        prompt = random_prompt(rng, vocab_size, earlier)
        earlier.append(prompt)
        harness.add(
            prompt,
            rng.randint(1, 40),
            priority=rng.choice([0, 0, 0, 1, -1]),
            n=rng.choice([1, 1, 1, 3]),
            speculative=rng.random() < 0.7,
            structured_output=rng.choice(GRAMMARS),
        )
        for _ in range(rng.choice([0, 0, 1, 4, 20])):
            harness.step()
        if rng.random() < 0.15:
            harness.engine.abort(rng.choice(harness.requests))
    harness.finish()
