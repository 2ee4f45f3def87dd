"""Whatever happens around a greedy request, it gets what plain one-at-a-time generation gives (see harness.py)."""

import random
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from codemill.chat import Tokenizer
from codemill.data.bpe import save_tokenizer, train_tokenizer
from codemill.engine_config import SpeculativeConfig
from codemill.models import CausalLM
from codemill.models import initialize as draw_weights
from codemill.models.mtp import MtpHead
from codemill.models.skeleton import build_mtp, materialize
from engine.conftest import TEXT, VOCAB_SIZE
from engine.harness import GRAMMARS, LONGEST, Harness, Plain, drive, random_options
from models.reference import FAMILIES, make_ours, make_reference


@cache
def plain(family: str, seed: int = 0) -> Plain:
    """A tiny model of the family, and what it says when it is asked plainly."""
    return Plain(make_ours(make_reference(family, seed, vocab_size=VOCAB_SIZE)), tiny_tokenizer())


@cache
def tiny_tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(train_tokenizer(TEXT, VOCAB_SIZE), folder)
        return Tokenizer.load(Path(folder))


def random_harness(rng: random.Random, family: str, model_seed: int = 0) -> Harness:
    """An engine with random settings; it may draft by n-grams, by another model, by the model itself, or by MTP."""
    oracle = plain(family, model_seed)
    options = random_options(rng, oracle.model)
    kind = rng.choice(["as it is", "as it is", "network", "itself"])
    draft: CausalLM | MtpHead | None = None
    if kind != "as it is":
        draft, method = drafting_network(oracle.model, itself=kind == "itself")
        number = rng.choice([1, 3, 8])
        model = "named elsewhere" if method == "draft" else None
        options["speculative"] = SpeculativeConfig(method, num_tokens=number, draft_model=model)
        options["kv_cache_bytes"] *= 2
    return Harness(oracle, options, draft)


def drafting_network(model: CausalLM, itself: bool) -> tuple[CausalLM | MtpHead, str]:
    if not model.config.is_hybrid:
        return (model if itself else plain("qwen3", 7).model), "draft"
    head = build_mtp(model.config, torch.float32)
    materialize(head, torch.device("cpu"))
    draw_weights(head, seed=1)
    return head, "mtp"


@pytest.mark.parametrize("family", FAMILIES)
def test_two_hundred_random_requests(family):
    rng = random.Random(family)
    for seed in range(5):
        drive(random_harness(rng, family, seed % 2), rng, num_requests=40)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_thousands_of_random_requests(family):
    rng = random.Random(f"many of {family}")
    for seed in range(34):
        drive(random_harness(rng, family, seed % 5), rng, num_requests=100)


class EngineMachine(RuleBasedStateMachine):
    """Requests are added, stepped and aborted in any order that hypothesis thinks of; at the end all are compared."""

    family: str

    @initialize(seed=st.integers(0, 10_000))
    def start(self, seed: int) -> None:
        self.harness = random_harness(random.Random(seed), self.family)
        self.prompts: list[tuple[int, ...]] = []

    @rule(
        base=st.integers(0, 20),
        shared=st.integers(0, LONGEST),
        new=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=60),
        repeats=st.integers(1, 3),
        max_tokens=st.integers(1, 30),
        priority=st.integers(-1, 1),
        grammar=st.sampled_from(GRAMMARS),
        speculative=st.booleans(),
    )
    def add(self, base, shared, new, repeats, max_tokens, priority, grammar, speculative):
        earlier = self.prompts[base % len(self.prompts)] if self.prompts else ()
        prompt = (*earlier[:shared], *new * repeats)[: LONGEST - 40]
        self.prompts.append(prompt)
        params = {"priority": priority, "structured_output": grammar, "speculative": speculative}
        self.harness.add(prompt, max_tokens, **params)

    @rule(count=st.integers(1, 15))
    def step(self, count):
        for _ in range(count):
            self.harness.step()

    @precondition(lambda self: self.harness.requests)
    @rule(which=st.integers(0, 100))
    def abort(self, which):
        self.harness.engine.abort(self.harness.requests[which % len(self.harness.requests)])

    @rule()
    def sleep_and_wake(self):
        self.harness.engine.sleep()
        self.harness.engine.wake()

    @rule()
    def fail_in_the_middle_of_a_pass(self):
        self.harness.fail_one_pass()

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.harness.finish()


def machine(family: str) -> type:
    test = type(f"Engine_{family}", (EngineMachine,), {"family": family}).TestCase
    test.settings = settings(
        max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    return test


TestDense = machine("qwen3")
TestExperts = machine("qwen3_moe")
TestHybrid = machine("qwen3_next")
