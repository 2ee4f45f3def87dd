"""`codemill eval perplexity`: figures in text and JSON, and what it refuses."""

import json
import math
from pathlib import Path

import pytest

from commands.conftest import TEXT, Run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text * 5}) + "\n" for text in TEXT))
    return path


def test_perplexity_of_a_file(codemill: Run, model_directory: Path, text: Path) -> None:
    shown = codemill("eval", "perplexity", "--model", model_directory, "--data", text, "--max-model-len", 32)
    found = codemill("eval", "perplexity", "--model", model_directory, "--data", text, "--max-model-len", 32, "--json")
    figures = json.loads(found.out)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert figures["num_tokens"] > 100
    assert "departure" not in figures
    assert f"perplexity {figures['perplexity']:.4f} on {figures['num_tokens']:,} tokens" in shown.out


def test_a_quantised_model_is_compared_with_itself_in_full(codemill: Run, model_directory: Path, text: Path) -> None:
    options = ("--model", model_directory, "--data", text, "--max-model-len", 64)
    shown = codemill("eval", "perplexity", *options, "--quantization", "int8")
    assert "same next token" in shown.out
    departure = json.loads(codemill("eval", "perplexity", *options, "--quantization", "int4", "--json").out)[
        "departure"
    ]
    assert 0 < departure["divergence"] < 1
    assert 0.3 < departure["agreement"] <= 1
    assert departure["perplexity_ratio"] == pytest.approx(math.exp(departure["loss_difference"]))


def test_reference_may_be_another_model(codemill: Run, model_directory: Path, text: Path) -> None:
    options = ("--model", model_directory, "--data", text, "--json")
    figures = json.loads(codemill("eval", "perplexity", *options, "--reference", model_directory).out)
    assert figures["departure"]["agreement"] == 1
    assert figures["departure"]["loss_difference"] == 0


def test_held_out_text_is_the_default(codemill: Run) -> None:
    figures = json.loads(codemill("eval", "perplexity", "--limit", 1, "--max-model-len", 128, "--json").out)
    assert figures["num_tokens"] == 127
    assert 1 < figures["perplexity"] < 200


@pytest.mark.parametrize(("options", "message"), [
    (("--limit", "0"), "at least 1 window"),
    (("--max-model-len", "100000"), "the model's context"),
    (("--max-model-len", "1"), "the model's context"),
    (("--data", "missing.txt"), "there is no such file"),
    (("--reference", "MODEL"), "vocabulary"),
    (("--gold",), "perplexity takes"),
    (("--style", "chat"), "perplexity takes"),
    (("run",), "perplexity takes"),
])  # fmt: skip
def test_wrong_options_are_one_line(
    model_directory: Path,
    codemill: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = codemill("eval", "perplexity", *(model_directory if each == "MODEL" else each for each in options))
    assert outcome.status == 2
    assert message in outcome.error
