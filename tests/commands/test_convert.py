"""`codemill convert`: models change their form and nothing else, or nothing happens."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from codemill import LLM
from codemill.chat import Tokenizer
from codemill.models import gguf_export, load_model, save_pretrained
from codemill.models.convert import convert
from commands.conftest import Run
from models.reference import make_ours, make_reference

SHORT = ("--max-tokens", "12", "--json")


def generated(codemill: Run, model: Path) -> list[object]:
    done = codemill("generate", "for value in values:", "--model", model, *SHORT)
    assert done.status == 0, done.err
    return [json.loads(done.out)["outputs"]]


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_all_forms_write_the_same_text(codemill: Run, model_directory: Path, tmp_path: Path, kind: str) -> None:
    first, there, back = tmp_path / "first", tmp_path / "there.gguf", tmp_path / "deep" / "back"
    assert codemill("convert", model_directory, first, "--type", kind).status == 0
    done = codemill("convert", first, there, "--json")
    assert (done.status, done.err) == (0, "")
    result = json.loads(done.out)
    assert result["type"] == kind
    assert result["bytes"] == there.stat().st_size
    assert result["tensors"] == len(gguf.GGUFReader(there).tensors)
    assert codemill("convert", there, back).status == 0
    assert generated(codemill, first) == generated(codemill, there) == generated(codemill, back)
    text = "class Sequence:  # naïve <|im_end|>"
    assert Tokenizer.load(back).encode(text) == Tokenizer.load(model_directory).encode(text)
    special = {"eos_token_id": 296, "pad_token_id": 294}  # which the source leaves to its tokenizer
    expected = replace(load_model(first).config, **special)
    assert load_model(back).config == load_model(there).config == expected


def test_eval_gives_the_same_score(codemill: Run, model_directory: Path, tmp_path: Path) -> None:
    codemill("convert", model_directory, tmp_path / "model.gguf")
    results = []
    for index, model in enumerate((model_directory, tmp_path / "model.gguf")):
        options = ("--model", model, "--limit", "2", "--max-tokens", "8", "--output", tmp_path / str(index), "--json")
        done = codemill("eval", "tasks", *options)
        assert done.status == 0, done.err
        results.append(json.loads(done.out))
    assert results[0]["pass@1"] == results[1]["pass@1"]
    texts = [[json.loads(line)["completion"] for line in path.read_text().splitlines()]
             for path in sorted(tmp_path.glob("*/samples.jsonl"))]  # fmt: skip
    assert len(texts) == 2
    assert texts[0] == texts[1]


def test_defaults_and_template_come_along(codemill: Run, model_directory: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(model_directory, source)
    defaults = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    (source / "generation_config.json").write_text(json.dumps(defaults | {"eos_token_id": [296, 294]}))
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    codemill("convert", source, tmp_path / "model.gguf")
    codemill("convert", tmp_path / "model.gguf", tmp_path / "back")
    saved = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert {key: saved[key] for key in defaults} == defaults
    messages = [{"role": "user", "content": "Grüße"}]
    for path in (tmp_path / "model.gguf", tmp_path / "back"):
        assert Tokenizer.load(path).render(messages) == "Grüße!"
    codemill("convert", source, tmp_path / "copy")
    assert (tmp_path / "copy" / "generation_config.json").read_text() == (source / "generation_config.json").read_text()


def test_every_id_that_ends_an_answer_survives(codemill: Run, model_directory: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(model_directory, source)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [296, 7, 9]}))
    codemill("convert", source, tmp_path / "model.gguf")
    llm = LLM(tmp_path / "model.gguf")
    assert {296, 294, 7, 9} == set(LLM(source).builder._eos_token_ids) == set(llm.builder._eos_token_ids)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [296, 7, 9, 11]}))
    failed = codemill("convert", source, tmp_path / "other.gguf")
    assert (failed.status, "no form for eos_token_id with [7, 9, 11]" in failed.error) == (1, True)


def test_nothing_is_replaced_unless_forced(codemill: Run, model_directory: Path, tmp_path: Path) -> None:
    for target in (tmp_path / "model.gguf", tmp_path / "model"):
        assert codemill("convert", model_directory, target).status == 0
        again = codemill("convert", model_directory, target)
        assert (again.status, "holds a model already: give another name, or --force" in again.error) == (2, True)
        assert codemill("convert", model_directory, target, "--force", "--type", "f16").status == 0
        assert load_model(target).dtype == torch.float16


def test_wrong_commands(codemill: Run, model_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.gguf").mkdir()
    cases = [
        ((model_directory, tmp_path / "x.gguf", "--type", "q5_k"), "can have f32, f16, bf16, q8_0, q4_0"),
        ((model_directory, tmp_path / "x", "--type", "q8_0"), "a directory can have f32, f16, bf16"),
        ((model_directory, tmp_path / "file"), "is a file: give a directory, or a name that ends in .gguf"),
        ((model_directory, tmp_path / "folder.gguf"), "is a directory: give another name"),
        ((tmp_path / "absent.gguf", tmp_path / "x"), "absent.gguf: no such file"),
        ((tmp_path / "absent", tmp_path / "x"), "absent: no such directory"),
    ]
    for arguments, message in cases:
        done = codemill("convert", *arguments)
        assert done.status == 2
        assert message in done.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.gguf"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing(
    codemill: Run, model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    codemill("convert", model_directory, tmp_path / "old.gguf")
    before = (tmp_path / "old.gguf").read_bytes()
    encode, calls = gguf_export.encode, []

    def stopping(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) > 9:
            raise stop
        return encode(*arguments)

    monkeypatch.setattr(gguf_export, "encode", stopping)
    done = codemill("convert", model_directory, tmp_path / "old.gguf", "--force", "--type", "f16")
    assert done.status == (130 if isinstance(stop, KeyboardInterrupt) else 1)
    assert [path.name for path in tmp_path.iterdir()] == ["old.gguf"]
    assert (tmp_path / "old.gguf").read_bytes() == before


def test_a_model_without_a_tokenizer(codemill: Run, tmp_path: Path) -> None:
    save_pretrained(make_ours(make_reference("qwen3")), tmp_path / "bare")
    codemill("convert", tmp_path / "bare", tmp_path / "bare.gguf")
    codemill("convert", tmp_path / "bare.gguf", tmp_path / "back")
    assert load_model(tmp_path / "back").config.vocab_size == 97
    failed = codemill("generate", "x", "--model", tmp_path / "bare.gguf")
    assert failed.status == 1
    assert re.search(r"bare\.gguf: tokenizer\.ggml\.model = 'none' is not supported", failed.error)


def test_experts_that_are_stacked_on_disk(tmp_path: Path) -> None:
    """As some libraries write them."""
    from safetensors.torch import load_file, save_file

    model = make_ours(make_reference("qwen3_moe"))
    save_pretrained(model, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for index, layer in enumerate(model.model.layers):
        prefix = f"model.layers.{index}.mlp.experts."
        kept |= {prefix + "gate_up_proj": layer.mlp.experts.gate_up_proj.data.clone()}
        kept |= {prefix + "down_proj": layer.mlp.experts.down_proj.data.clone()}
    save_file(kept, tmp_path / "model" / "model.safetensors")
    convert(tmp_path / "model", tmp_path / "model.gguf", "f32")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(load_model(tmp_path / "model.gguf")(ids), model(ids))


def test_a_stream_holds_no_weights(tmp_path: Path) -> None:
    """Opening a model of 480 billion parameters takes none of their memory."""
    from codemill.models.weight_stream import open_stream

    stream = open_stream("random:qwen3-coder-480b-a35b")
    name, shape = next(iter(stream.names()))
    assert (name, shape) == ("model.embed_tokens.weight", (151_936, 6144))
    assert all(parameter.is_meta for parameter in stream.model.parameters())
