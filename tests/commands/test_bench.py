"""`codemill bench`: what it prints, and how it refuses."""

import json
from pathlib import Path

import pytest

from codemill.bench.turns import Turns
from codemill.bench.workload import Measurement
from commands.conftest import Run

SMALL = ("--rounds", "1", "--prompt-lengths", "16", "--decode-after", "0,16", "--batch", "1,2", "--decode-tokens", "4")
ONE = ("--threads", "1")


def test_the_embedded_model_as_json(codemill: Run) -> None:
    done = codemill("bench", "--json", *SMALL, *ONE)
    assert (done.status, done.err) == (0, "")
    result = json.loads(done.out)
    assert set(result) >= {"machine", "model", "figures"}
    figures = {figure["name"]: figure for figure in result["figures"]}
    assert {"prefill 16", "time to first token, 16", "decode after 0", "decode after 16, batch 2"} <= set(figures)
    assert all({"value", "unit", "roofline", "fraction"} <= set(figure) for figure in figures.values())
    for name in ("prefill 16", "decode after 0", "decode after 16, batch 2"):
        figure = figures[name]
        assert figure["unit"] == "tokens/s"
        assert figure["fraction"] == pytest.approx(figure["value"] / figure["roofline"])
        assert 0 < figure["fraction"] < 1
    assert figures["peak memory over weights"]["value"] > 1
    assert result["machine"]["threads"] == 1
    assert all(entry["bytes_per_second"] > 1e8 for entry in result["machine"]["read_bandwidth"])
    assert result["model"]["weight_bytes"] == figures["of that: weights"]["value"]
    assert result["failures"] == {}


def test_the_table(codemill: Run, model_directory: Path) -> None:
    done = codemill("bench", model_directory, *SMALL, *ONE, "--compare", "transformers")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{model_directory}, float32: ")
    (header,) = (line for line in lines if line.startswith("FIGURE"))
    assert header.split() == ["FIGURE", "VALUE", "LIMIT", "REACHED", "TRANSFORMERS", "WE", "ARE"]
    (row,) = (line for line in lines if line.startswith("decode after 16, batch 2"))
    assert row.count("%") == 1
    assert row.endswith(" x")
    assert lines[-1] == "transformers: float32, eager"


def test_what_was_measured_is_printed_after_an_interruption(codemill: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    take_turn, turns = Turns._take_turn, []

    def interrupted(self: Turns, name: str, measurement: Measurement, seed: int) -> None:
        if turns:
            raise KeyboardInterrupt
        turns.append(measurement)
        take_turn(self, name, measurement, seed)

    monkeypatch.setattr(Turns, "_take_turn", interrupted)
    done = codemill("bench", "--json", *SMALL, *ONE)
    assert done.status == 130
    assert "interrupted" in done.err
    names = [figure["name"] for figure in json.loads(done.out)["figures"]]
    assert "decode after 0" in names
    assert "decode after 16, batch 2" not in names


def test_lengths_beyond_the_context_are_left_out_aloud(codemill: Run) -> None:
    done = codemill("bench", "--json", *ONE, "--rounds", "1", "--prompt-lengths", "8,5000", "--decode-after", "")
    assert done.status == 0
    assert done.err == "[prefill 5000 is left out: the model's context is too short]\n"
    assert "prefill 5000" not in done.out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--compare", "vllm"), 2, "unknown peer; choose among llama.cpp, openvino, transformers"),
        (("--prompt-lengths", "many"), 2, "give whole numbers, as in 512,2048"),
        (("--prompt-lengths", "0"), 2, "--prompt-lengths 0: must be at least 1"),
        (("--batch", "-1"), 2, "--batch -1: must be at least 1"),
        (("--prompt-lengths", "", "--decode-after", ""), 2, "nothing to measure"),
        (("--prompt-lengths", "4000", "--decode-after", ""), 2, "context of 1024 tokens is too short"),
        (("--rounds", "0"), 2, "--rounds 0: must be at least 1"),
        (("--dtype", "int3"), 2, "--dtype int3"),
        (("--compare", "transformers", "--peers-python", "/no/python"), 2, "/no/python cannot be started"),
        (("random:qwen9",), 2, "unknown preset"),
    ],
)
def test_errors(codemill: Run, arguments: tuple[str, ...], status: int, message: str) -> None:
    done = codemill("bench", *arguments)
    assert done.status == status
    assert message in done.error
