"""`codemill data pack`: rows on disk, made once."""

import json
from pathlib import Path

import numpy as np
import pytest

from codemill.chat import Tokenizer
from codemill.data.packed_directory import PackedDirectory
from codemill.errors import CodemillError, UsageError
from commands.conftest import Run


@pytest.fixture
def training(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    pairs = [(f"Count to {n}.", " ".join(map(str, range(n)))) for n in range(1, 40)]
    records = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def test_rows_hold_every_token_and_its_weight(codemill: Run, training: Path, tmp_path: Path) -> None:
    done = codemill("data", "pack", training, "--context", 200, "--output", tmp_path / "packed", "--json")
    assert done.status == 0, done.err
    info, rows = json.loads(done.out), PackedDirectory(tmp_path / "packed").rows()
    assert (info["records"], info["documents"], info["rows"]) == (39, 39, len(rows))
    assert rows.input_ids.shape[1] == 200
    assert (rows.document_ids >= 0).sum() == info["tokens"]
    assert (rows.loss_weights > 0).sum() == info["learned_tokens"]
    assert info["fill"] == pytest.approx(rows.fill)
    tokenizer = Tokenizer.load()
    first = tokenizer.encode_chat([{"role": "user", "content": "Count to 39."}], add_generation_prompt=True)
    assert any(np.array_equal(row[: len(first)], first) for row in rows.input_ids)


def test_a_second_run_finds_it_done(codemill: Run, training: Path, tmp_path: Path) -> None:
    output = tmp_path / "packed"
    first = codemill("data", "pack", training, "--context", 200, "--output", output)
    assert f"written: {output / 'rows.npy'}" in first.out
    assert "% full" in first.out
    written = (output / "rows.npy").stat().st_mtime_ns
    assert "packed already" in codemill("data", "pack", training, "--context", 200, "--output", output).out
    assert (output / "rows.npy").stat().st_mtime_ns == written
    again = codemill("data", "pack", training, "--context", 250, "--output", output)
    assert "written" in again.out
    (output / "rows.npy").write_bytes((output / "rows.npy").read_bytes()[:-4])
    assert "written" in codemill("data", "pack", training, "--context", 250, "--output", output).out
    assert PackedDirectory(output).rows().input_ids.shape[1] == 250


def test_policies_are_reported(codemill: Run, training: Path, tmp_path: Path) -> None:
    with training.open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "alone"}]}\n')
    options = ("--context", 80, "--output", tmp_path / "packed")
    assert f"{training}:40: nothing to learn from" in codemill("data", "pack", training, *options).error
    assert "tokens, but the context is 80" in codemill("data", "pack", training, *options, "--on-empty", "skip").error
    done = codemill("data", "pack", training, *options, "--on-empty", "skip", "--overlong", "drop")
    assert "skipped, with nothing to learn from: 1" in done.out
    assert "longer than the context: " in done.out


def test_rows_are_for_one_tokenizer(codemill: Run, training: Path, tmp_path: Path, model_directory: Path) -> None:
    output = tmp_path / "packed"
    codemill("data", "pack", training, "--context", 400, "--output", output)
    assert len(PackedDirectory(output).rows(Tokenizer.load()))
    with pytest.raises(UsageError, match="packed with another tokenizer"):
        PackedDirectory(output).rows(Tokenizer.load(model_directory))
    (output / "pack.json").write_text("{")
    with pytest.raises(CodemillError, match=r"pack\.json cannot be read"):
        PackedDirectory(output).rows()
    with pytest.raises(CodemillError, match="holds no packed data"):
        PackedDirectory(tmp_path).rows()


def test_preference_pairs_are_refused(codemill: Run, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    assert f"{path}:1: a preference pair is for DPO" in codemill("data", "pack", path, "--output", tmp_path / "p").error
