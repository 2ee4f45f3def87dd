"""Saving replaces a model as a whole or not at all."""

import json
from pathlib import Path

import pytest
import torch

from codemill.errors import CodemillError
from codemill.models import CausalLM, load_model, save, save_pretrained
from models.reference import make_ours, make_reference

INPUT_IDS = torch.arange(9)[None]


@pytest.fixture
def model() -> CausalLM:
    return make_ours(make_reference("qwen3_moe", seed=1))


@pytest.fixture
def other() -> CausalLM:
    """A model of another shape."""
    return make_ours(make_reference("qwen3", seed=2))


def assert_loads_as(directory: Path, model: CausalLM) -> None:
    assert torch.equal(load_model(directory)(INPUT_IDS), model(INPUT_IDS))


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_shards_respect_the_limit_and_the_index_lists_every_tensor(tmp_path: Path, model: CausalLM) -> None:
    save_pretrained(model, tmp_path / "a" / "b", max_shard_bytes=13_000)
    directory = tmp_path / "a" / "b"
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    shards = sorted(directory.glob("model-*.safetensors"))
    assert [path.name for path in shards] == sorted(set(index["weight_map"].values()))
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    # A header takes a few kB; only the embedding and the head are beyond the limit on their own.
    assert all(path.stat().st_size < 13_000 + 8_000 for path in shards)
    assert index["metadata"]["total_size"] == sum(parameter.nbytes for parameter in model.parameters())
    assert_loads_as(directory, model)


def test_weights_are_as_readable_as_the_config(tmp_path: Path, model: CausalLM) -> None:
    save_pretrained(model, tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_replaces_another_model_and_keeps_other_files(tmp_path: Path, model: CausalLM, other: CausalLM) -> None:
    (tmp_path / "README.md").write_text("mine")
    save_pretrained(model, tmp_path, max_shard_bytes=40_000)
    save_pretrained(other, tmp_path)
    assert files(tmp_path) == {"README.md", "config.json", "model.safetensors"}
    assert_loads_as(tmp_path, other)
    save_pretrained(model, tmp_path, max_shard_bytes=40_000)
    assert "model.safetensors" not in files(tmp_path)
    assert_loads_as(tmp_path, model)


def test_a_mapped_model_may_be_saved_over_itself(tmp_path: Path, model: CausalLM) -> None:
    save_pretrained(model, tmp_path)
    mapped = load_model(tmp_path)
    save_pretrained(mapped, tmp_path)
    assert_loads_as(tmp_path, model)
    assert torch.equal(mapped(INPUT_IDS), model(INPUT_IDS))


def test_companion_files_come_along(tmp_path: Path, model: CausalLM) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "optimizer.pt", "config.json"):
        (source / name).write_text(name)
    save_pretrained(model, target, tokenizer_files_from=source)
    expected = {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "chat_template.jinja"}
    assert files(target) == expected
    assert (target / "tokenizer.json").read_text() == "tokenizer.json"
    save_pretrained(model, target, tokenizer_files_from=target)
    assert files(target) == expected
    with pytest.raises(CodemillError, match="nowhere: no such directory to take the tokenizer from"):
        save_pretrained(model, target, tokenizer_files_from=tmp_path / "nowhere")
    assert_loads_as(target, model)


def test_failing_while_writing_leaves_the_old_model(
    tmp_path: Path, model: CausalLM, other: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(other, tmp_path)
    before = files(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "write_file", full)
    with pytest.raises(CodemillError, match=r"the model cannot be saved \(No space left on device\)"):
        save_pretrained(model, tmp_path)
    assert files(tmp_path) == before
    assert_loads_as(tmp_path, other)


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_interrupted_while_moving_loads_as_nothing(
    tmp_path: Path, model: CausalLM, other: CausalLM, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    save_pretrained(other, tmp_path)
    replace, done = Path.replace, []

    def interrupted(path: Path, target: Path) -> Path:
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(path.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(model, tmp_path, max_shard_bytes=60_000)
    monkeypatch.undo()
    assert "config.json" not in done
    with pytest.raises(CodemillError, match=r"config\.json does not exist"):
        load_model(tmp_path)
    save_pretrained(model, tmp_path, max_shard_bytes=60_000)
    assert_loads_as(tmp_path, model)


def test_what_a_killed_save_left_is_cleared(tmp_path: Path, model: CausalLM) -> None:
    (tmp_path / ".saving-abc").mkdir()
    (tmp_path / ".saving-abc" / "model.safetensors").write_bytes(b"half")
    save_pretrained(model, tmp_path)
    assert files(tmp_path) == {"config.json", "model.safetensors"}


def test_a_directory_that_cannot_be_made(tmp_path: Path, model: CausalLM) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CodemillError, match=r"file.*: the model cannot be saved"):
        save_pretrained(model, tmp_path / "file")
    with pytest.raises(CodemillError, match="the model cannot be saved"):
        save_pretrained(model, tmp_path / "file" / "below")


def test_the_dtype_in_memory_is_the_dtype_on_disk(tmp_path: Path, model: CausalLM) -> None:
    save_pretrained(model.to(torch.float16), tmp_path)
    assert load_model(tmp_path).dtype == torch.float16
