"""The checkpoint's defaults, and how a request completes or overrides them."""

import json

import pytest

from codemill.engine.generation_config import Distribution, GenerationConfig
from codemill.engine.sampling_params import SamplingParams
from codemill.errors import CodemillError

CODER = {
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "transformers_version": "4.51.0",
}


def write(folder, content):
    (folder / "generation_config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_read_from_a_checkpoint(tmp_path):
    config = GenerationConfig.load(write(tmp_path, CODER))
    assert config.eos_token_ids == (151645, 151643)
    assert config.distribution(SamplingParams()) == Distribution(0.7, 20, 0.8, 0.0, 1.05)


def test_a_request_overrides_what_it_names(tmp_path):
    config = GenerationConfig.load(write(tmp_path, CODER))
    assert config.distribution(SamplingParams(temperature=1.0, top_k=-1)) == Distribution(1.0, 0, 0.8, 0.0, 1.05)
    greedy = config.distribution(SamplingParams(temperature=0, repetition_penalty=1.0))
    assert greedy.is_greedy
    assert greedy.repetition_penalty == 1.0


@pytest.mark.parametrize("raw", [{}, {**CODER, "do_sample": False}, {**CODER, "do_sample": None}])
def test_greedy_unless_the_checkpoint_samples(raw):
    config = GenerationConfig.from_dict(raw)
    assert config.distribution(SamplingParams()).is_greedy
    assert config.distribution(SamplingParams(temperature=0.5)).temperature == 0.5


def test_sampling_without_a_temperature_is_at_one():
    assert GenerationConfig.from_dict({"do_sample": True}).distribution(SamplingParams()) == Distribution(1.0)


def test_no_file_means_no_defaults(tmp_path):
    assert GenerationConfig.load(tmp_path) == GenerationConfig()


def test_one_end_of_text_id(tmp_path):
    assert GenerationConfig.load(write(tmp_path, {"eos_token_id": 5})).eos_token_ids == (5,)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"top_p": 3}, "top_p = 3"),
        ({"temperature": "hot"}, "temperature = 'hot'"),
        ({"do_sample": "yes"}, "do_sample = 'yes'"),
        ({"eos_token_id": "<|im_end|>"}, "eos_token_id = '<|im_end|>'"),
        ({"max_new_tokens": 0}, "max_tokens = 0"),
        ("{", "not readable JSON"),
        ("[]", "no JSON object"),
    ],
)
def test_nonsense_is_one_line_that_names_the_file(tmp_path, content, said):
    with pytest.raises(CodemillError) as error:
        GenerationConfig.load(write(tmp_path, content))
    message = str(error.value)
    assert str(tmp_path / "generation_config.json") in message
    assert said in message
    assert "\n" not in message
