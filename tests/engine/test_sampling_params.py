"""Sampling parameters are checked when they are made, and need no torch."""

import math
import subprocess
import sys

import pytest

from codemill.engine.sampling_params import SamplingParams
from codemill.errors import UsageError

WRONG = [
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "0.7"),
    ("temperature", True),
    ("top_k", -2),
    ("top_k", 1.5),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1.0),
    ("presence_penalty", 2.1),
    ("presence_penalty", None),
    ("frequency_penalty", -2.1),
    ("seed", 1.0),
    ("seed", "one"),
    ("max_tokens", 0),
    ("max_tokens", 10.0),
    ("max_tokens", True),
    ("min_tokens", -1),
    ("stop", 7),
    ("stop", [7]),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", b"a"),
    ("stop_token_ids", 7),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", ["a"]),
    ("stop_token_ids", None),
    ("ignore_eos", 1),
    ("logprobs", -1),
    ("logprobs", 21),
    ("logprobs", True),
    ("n", 0),
    ("n", 100_000),
    ("skip_special_tokens", None),
    ("logit_bias", [1]),
    ("logit_bias", {"a": 1.0}),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}-{value}" for name, value in WRONG])
def test_a_wrong_value_is_named_in_one_line(name, value):
    with pytest.raises(UsageError) as error:
        SamplingParams(**{name: value})
    message = str(error.value)
    assert message.startswith(f"{name} = {value!r}"[:60])
    assert "\n" not in message
    assert "must be" in message


@pytest.mark.parametrize("value", [101, math.nan, "1"])
def test_a_wrong_bias_names_its_token(value):
    with pytest.raises(UsageError, match=r"logit_bias\[5\] = "):
        SamplingParams(logit_bias={4: 1, 5: value})


def test_min_tokens_may_not_exceed_max_tokens():
    with pytest.raises(UsageError, match="min_tokens = 5: must be from 0 to max_tokens"):
        SamplingParams(max_tokens=4, min_tokens=5)


def test_a_long_value_is_shortened():
    with pytest.raises(UsageError) as error:
        SamplingParams(stop=[""] * 1000)
    assert len(str(error.value)) < 150


def test_bounds_are_allowed():
    SamplingParams(
        temperature=0, top_k=-1, top_p=1, min_p=1, repetition_penalty=0.1, presence_penalty=-2, frequency_penalty=2,
        seed=-5, max_tokens=1, min_tokens=1, stop_token_ids=(0,), logprobs=20, logit_bias={0: -100, 1: 100},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stop", "expected"), [(None, ()), ("ab", ("ab",)), (["a", "b"], ("a", "b")), (("a",), ("a",))]
)
def test_stop_strings(stop, expected):
    assert SamplingParams(stop=stop).stop_strings == expected


def test_no_torch_is_imported():
    code = "import sys, codemill; codemill.SamplingParams(); codemill.StreamPiece; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_export_is_an_attribute_error():
    import codemill

    assert set(codemill.__all__) <= set(dir(codemill))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        codemill.nothing  # noqa: B018
