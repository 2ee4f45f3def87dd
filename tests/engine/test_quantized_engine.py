"""Engines over quantised networks: whatever happens around a request, it gets what plain generation gives."""

import random

import pytest

from codemill.engine_config import SpeculativeConfig
from codemill.kernels.cpu_library import load_cpu_library
from codemill.models import load_model
from engine.conftest import VOCAB_SIZE
from engine.harness import Harness, Plain, drive, random_options
from models.reference import FAMILIES, make_reference


@pytest.mark.skipif(load_cpu_library() is None, reason="needs a C++ compiler at installation")
@pytest.mark.parametrize("quantization", ["int4", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_random_requests(family, quantization, tokenizer, tmp_path):
    make_reference(family, vocab_size=VOCAB_SIZE).save_pretrained(tmp_path)
    plain = Plain(load_model(tmp_path, quantization=quantization), tokenizer)
    rng = random.Random(family + quantization)
    for speculative in (None, SpeculativeConfig("ngram", num_tokens=4)):
        harness = Harness(plain, {**random_options(rng, plain.model), "speculative": speculative})
        drive(harness, rng, num_requests=12)
        assert harness.num_ties == 0
