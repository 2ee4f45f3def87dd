"""Fill-in-the-middle over HTTP, as editors ask for it."""

import json
import re

import pytest

from codemill.chat import Tokenizer
from server.events import read_chunks, read_events

# What llama.vim sends and reads.
FIELDS = [
    "content",
    *(
        f"timings/{kind}_{what}"
        for kind in ("prompt", "predicted")
        for what in ("n", "ms", "per_token_ms", "per_second")
    ),
    *("truncated", "tokens_cached"),
]
VIM = {
    "id_slot": 0,
    "input_prefix": "def add(a, b):\n",
    "input_suffix": "\n\nprint(add(1, 2))\n",
    "input_extra": [
        {"text": "x = 1\n", "time": [1, 2], "filename": "far.py"},
        {"text": "y = 2", "filename": "near.py"},
    ],
    "prompt": "    return ",
    "n_predict": 128,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.9,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 250,
    "response_fields": FIELDS,
}


def test_what_llama_vim_reads(serve):
    seen = []
    answer = serve(lambda prompt: seen.append(prompt) or "a + b").post("/infill", json=VIM)
    assert answer.status_code == 200
    assert list(answer.json()) == FIELDS
    assert answer.json()["content"] == "a + b"
    assert answer.json()["timings/predicted_n"] > 1
    assert seen == [
        "<|repo_name|>repository\n<|file_sep|>far.py\nx = 1\n<|file_sep|>near.py\ny = 2\n<|file_sep|>file\n"
        "<|fim_prefix|>def add(a, b):\n    return <|fim_suffix|>\n\nprint(add(1, 2))\n<|fim_middle|>"
    ]


def test_all_fields(serve):
    body = {"input_prefix": "a", "input_suffix": "b", "stop": ["three"]}
    result = serve(lambda prompt: "one two three").post("/infill", json=body).json()
    assert (result["content"], result["stop"], result["stop_type"]) == ("one two ", True, "word")
    assert result["stopping_word"] == "three"
    assert result["tokens_evaluated"] == result["timings"]["prompt_n"] + result["timings"]["cache_n"] == 5


def test_warming_up(serve):
    body = {**VIM, "n_predict": 0, "prompt": "", "samplers": [], "t_max_predict_ms": 1, "response_fields": [""]}
    client = serve()
    assert client.post("/infill", json=body).json() == {}
    result = client.post("/infill", json={**body, "response_fields": None}).json()
    assert (result["content"], result["tokens_predicted"]) == ("", 0)


def test_stream(serve):
    client = serve(lambda prompt: "one\ntwo")
    with client.stream("POST", "/infill", json={"input_prefix": "a", "stream": True}) as response:
        pieces = [json.loads(data) for _, data in read_events(response)]
    assert "".join(piece["content"] for piece in pieces) == "one\ntwo"
    assert [piece["stop"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1]["has_new_line"]
    assert pieces[-1]["timings"]["predicted_n"] > 1


def test_several_completions(serve):
    results = serve(lambda prompt: "x").post("/infill", json={**VIM, "n_cmpl": 3}).json()
    assert [result["content"] for result in results] == ["x"] * 3


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("a\n    b\n\n  \n    c\n  d\n    e", "a\n    b\n\n  \n    c\n  "),
        ("a\n    b\ndef g():\n", "a\n    b\n"),
        ("a\n\tb\n", "a\n\t"),
        ("a\n        b", "a\n        b"),
    ],
)
def test_indentation_ends_it(serve, written, kept):
    client = serve(lambda prompt: written)
    assert client.post("/infill", json={"input_prefix": "x", "n_indent": 4}).json()["content"] == kept


def test_time_ends_it_with_its_line(serve):
    client = serve(lambda prompt: "aa bb cc\n" * 100, token_seconds=0.01, max_num_seqs=1)
    body = {"input_prefix": "x", "t_max_predict_ms": 100, "n_predict": 500}
    result = client.post("/infill", json=body).json()
    assert result["content"].endswith("cc\n")
    assert 10 < len(result["content"]) < 300
    assert result["stop_type"] == "limit"
    assert client.post("/infill", json=body).status_code == 200  # the place is free again


def test_time_does_not_end_a_first_line(serve):
    client = serve(lambda prompt: "a b c d e f g h", token_seconds=0.02)
    body = {"input_prefix": "x", "t_max_predict_ms": 20}
    assert client.post("/infill", json=body).json()["content"] == "a b c d e f g h"


def test_what_is_too_long_is_cut(serve):
    seen = []
    client = serve(lambda prompt: seen.append(prompt) or "x", max_model_len=256)
    files = [{"filename": f"{number}.py", "text": f"file {number}\n" * 10} for number in range(20)]
    body = {"input_prefix": "before\n", "input_suffix": "after\n", "input_extra": files, "n_predict": 32}
    assert client.post("/infill", json=body).status_code == 200
    kept = [int(name) for name in re.findall(r"<\|file_sep\|>(\d+)\.py", seen[-1])]
    assert kept
    assert kept == list(range(20 - len(kept), 20))
    assert len(Tokenizer.load().encode(seen[-1], allowed_special="all")) <= 224
    body = {"input_prefix": "before\n" * 300 + "here", "input_suffix": "there" + "\nafter" * 300, "n_predict": 32}
    assert client.post("/infill", json=body).status_code == 200
    before, after = seen[-1].removesuffix("<|fim_middle|>").split("<|fim_suffix|>")
    assert before.endswith("before\nhere")
    assert after.startswith("there\nafter")
    assert before.count("before") > 2 * after.count("after") > 20


def test_mistral(serve):
    seen = []
    client = serve(lambda prompt: seen.append(prompt) or "a + b")
    body = {"model": "codestral", "prompt": "return ", "suffix": "\n", "random_seed": 1, "max_tokens": 20}
    answer = client.post("/v1/fim/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == "a + b"
    assert seen == ["<|fim_prefix|>return <|fim_suffix|>\n<|fim_middle|>"]
    with client.stream("POST", "/v1/fim/completions", json={**body, "stream": True}) as response:
        chunks = list(read_chunks(response))
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in chunks if each["choices"]) == "a + b"
