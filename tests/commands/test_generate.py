"""`codemill generate`: what it prints where, and how it refuses."""

import json
import re
import sys
from pathlib import Path

import pytest

from commands.conftest import CONTEXT, Run

SPEED = re.compile(r"\[\d+ prompt tokens at \d+ tokens/s, 20 generated at [\d.]+ tokens/s\]\n")
SHORT = ("--max-tokens", "20")


def test_the_stream_is_the_text_of_json(codemill: Run, model_directory: Path) -> None:
    streamed = codemill("generate", "def add(", "--model", model_directory, *SHORT)
    assert streamed.status == 0
    assert SPEED.fullmatch(streamed.err)
    whole = codemill("generate", "def add(", "--model", model_directory, *SHORT, "--json")
    assert (whole.status, whole.err) == (0, "")
    result = json.loads(whole.out)
    (sample,) = result["outputs"]
    assert streamed.out == sample["text"] + "\n"
    assert (result["prompt"], sample["finish_reason"], len(sample["token_ids"])) == ("def add(", "length", 20)
    assert result["metrics"]["num_output_tokens"] == 20
    assert result["metrics"]["tokens_per_second"] > 0


def test_a_dash_reads_standard_input(codemill: Run, model_directory: Path) -> None:
    prompt = "# Grüße\nfor value in values:\r\n"
    options = ("--model", model_directory, *SHORT, "--json")
    piped = json.loads(codemill("generate", "-", *options, stdin=prompt.encode()).out)
    given = json.loads(codemill("generate", prompt, *options).out)
    assert piped["prompt"] == prompt
    assert piped["outputs"] == given["outputs"]


def test_samples_and_seed(codemill: Run, model_directory: Path) -> None:
    options = ("generate", "for", "--model", model_directory, *SHORT, "-n", "2", "--temperature", "1", "--seed")
    first = codemill(*options, "3")
    assert first.out.startswith("--- sample 1\n")
    assert "\n--- sample 2\n" in first.out
    assert first.out == codemill(*options, "3").out
    assert first.out != codemill(*options, "4").out
    texts = [sample["text"] for sample in json.loads(codemill(*options, "3", "--json").out)["outputs"]]
    assert texts[0] != texts[1]
    assert all(text in first.out for text in texts)


def test_an_empty_cache_directory_is_not_the_current_one(
    codemill: Run, model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = codemill("generate", "for", "--model", model_directory, *SHORT, "--prefix-cache-dir", "")
    assert (result.status, result.out) == (2, "")
    assert "prefix_cache_dir is empty: name a directory" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_stop_text_is_not_printed(codemill: Run, model_directory: Path) -> None:
    options = ("generate", "def add(", "--model", model_directory)
    whole = codemill(*options, *SHORT).out
    stop = whole[4:7]
    stopped = json.loads(codemill(*options, *SHORT, "--stop", stop, "--json").out)["outputs"][0]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", stop)
    assert whole.startswith(stopped["text"])
    assert stop not in stopped["text"]


def test_logprobs_are_in_the_json(codemill: Run, model_directory: Path) -> None:
    done = codemill("generate", "def", "--model", model_directory, "--max-tokens", "3", "--logprobs", "2", "--json")
    (sample,) = json.loads(done.out)["outputs"]
    assert len(sample["logprobs"]) == 3
    assert [len(top) for top in sample["top_logprobs"]] == [2, 2, 2]


def test_a_shorter_context(codemill: Run, model_directory: Path) -> None:
    done = codemill("generate", "def", "--model", model_directory, "--max-model-len", "9", "--json")
    result = json.loads(done.out)
    assert result["metrics"]["num_prompt_tokens"] + result["metrics"]["num_output_tokens"] == 9


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([""], "prompt is empty"),
        (["x", "--temperature", "-1"], "temperature = -1.0"),
        (["x", "--temperature", "nan"], "temperature = nan"),
        (["x", "--temperature", "warm"], "'--temperature'"),
        (["x", "--top-k", "-2"], "top_k = -2"),
        (["x", "--top-p", "0"], "top_p = 0.0"),
        (["x", "--top-p", "1.5"], "top_p = 1.5"),
        (["x", "--min-p", "2"], "min_p = 2.0"),
        (["x", "--repetition-penalty", "0"], "repetition_penalty = 0.0"),
        (["x", "--max-tokens", "0"], "max_tokens = 0"),
        (["x", "--stop", ""], "stop = "),
        (["x", "-n", "0"], "n = 0"),
        (["x", "--logprobs", "21", "--json"], "logprobs = 21"),
        (["x", "--logprobs", "1"], "--json"),
        (["x", "--max-model-len", "1"], "max_model_len = 1"),
        (["x", "--max-model-len", "1000000"], f"context has {CONTEXT} tokens"),
        (["x", "--dtype", "float7"], "float7"),
        (["x", "--device", "abacus"], "abacus"),
        (["x", "--threads", "0"], "'--threads'"),
        (["word " * CONTEXT], f"holds {CONTEXT}"),
        ([], "PROMPT"),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(
    arguments: list[str], named: str, codemill: Run, model_directory: Path
) -> None:
    done = codemill("generate", *arguments, "--model", model_directory)
    assert done.status == 2
    assert named in done.error


@pytest.mark.parametrize(
    ("stdin", "named"),
    [
        (b"", "prompt is empty"),
        (b"\x89PNG\r\n\x1a\n\xff", "no UTF-8"),
        ("text".encode("utf-16"), "no UTF-8"),
        (b"ELF\0\0\1", "binary"),
    ],
)
def test_standard_input_that_is_no_prompt(stdin: bytes, named: str, codemill: Run, model_directory: Path) -> None:
    done = codemill("generate", "-", "--model", model_directory, stdin=stdin)
    assert done.status == 2
    assert named in done.error


def test_a_model_that_is_not_there(codemill: Run, tmp_path: Path) -> None:
    done = codemill("generate", "x", "--model", tmp_path / "nowhere")
    assert done.status == 2
    assert "nowhere: no such directory" in done.error


def test_a_directory_without_config(codemill: Run, tmp_path: Path) -> None:
    done = codemill("generate", "x", "--model", tmp_path)
    assert done.status == 1
    assert str(tmp_path / "config.json") in done.error


@pytest.mark.parametrize("extra", [[], ["--json"], ["-n", "2"], ["--temperature", "1"]])
def test_weights_that_are_nan(extra: list[str], codemill: Run, nan_directory: Path) -> None:
    done = codemill("generate", "x", "--model", nan_directory, *extra)
    assert done.status == 1
    assert "NaN" in done.error


def test_debug_shows_the_traceback(codemill: Run, nan_directory: Path) -> None:
    done = codemill("generate", "x", "--model", nan_directory, "--debug")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("Traceback")


def test_ctrl_c_ends_it_with_130(codemill: Run, model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("codemill.engine.engine.Engine.step", interrupt)
    done = codemill("generate", "x", "--model", model_directory)
    assert (done.status, done.out, done.err) == (130, "", "")
    assert sys.stdin is not None
