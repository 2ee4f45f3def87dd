"""`codemill merge`: a merged model computes what the model with the adapter does."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from codemill import LLM
from codemill.models import load_model, save_pretrained
from codemill.models.convert import convert
from codemill.models.dora import weight_of
from codemill.models.lora import LoraAdapter
from commands.conftest import Run
from models.adapters import EXPERTS, make_adapter, random_ids
from models.reference import make_ours, make_reference

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj"]
CASES = {
    "dense": ("qwen3", {"target_modules": "all-linear", "use_rslora": True}),
    "dora": ("qwen3", {"target_modules": "all-linear", "use_dora": True}),
    "head-and-embedding": ("qwen3", {"target_modules": ["lm_head", "embed_tokens"]}),
    "moe": ("qwen3_moe", {"target_modules": LINEAR, "target_parameters": EXPERTS}),
    "moe-down": ("qwen3_moe", {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
    "hybrid": ("qwen3_next", {"target_modules": [*LINEAR, "in_proj_qkvz"], "target_parameters": EXPERTS}),
}


@pytest.mark.parametrize("case", CASES)
def test_merged_equals_peft_and_the_adapter(codemill: Run, case: str, tmp_path: Path) -> None:
    family, settings = CASES[case]
    base, adapter, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    ours = make_ours(make_reference(family))
    save_pretrained(ours, base)
    reference = make_adapter(adapter, family, settings)
    done = codemill("merge", base, adapter, merged, "--json")
    assert (done.status, done.err) == (0, "")
    result = json.loads(done.out)
    assert (result["path"], result["type"], result["tensors"]) == (str(merged), "f32", len(stored(merged)))

    found = load_model(merged)
    expected = make_ours(reference.merge_and_unload()).state_dict()
    for name, weight in found.state_dict().items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-5, msg=name)
    loaded = LoraAdapter.load(adapter, ours.config, torch.float32, weights=partial(weight_of, ours))
    input_ids = random_ids(ours, 1, 20)
    adapted = ours(input_ids, adapters=[loaded])
    assert (adapted - ours(input_ids)).abs().max() > 0.1
    torch.testing.assert_close(found(input_ids), adapted, atol=2e-3, rtol=1e-3)


def stored(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_tied_head_gets_weights_of_its_own(target: str, tmp_path: Path) -> None:
    """In bf16, which is kept; `transformers` loads it."""
    base, adapter, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    ours = make_ours(make_reference("qwen3", tie_word_embeddings=True)).bfloat16()
    save_pretrained(ours, base)
    make_adapter(adapter, "qwen3", {"target_modules": [target]}, tie_word_embeddings=True)
    assert convert(base, merged, adapter=adapter).type == "bf16"
    weights = stored(merged)
    changed, kept = ("lm_head", "model.embed_tokens") if target == "lm_head" else ("model.embed_tokens", "lm_head")
    assert torch.equal(weights[f"{kept}.weight"], ours.model.embed_tokens.weight)
    input_ids = random_ids(ours, 1, 20)
    model = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    loaded = LoraAdapter.load(adapter, ours.config, torch.float32)
    expected = ours.float()(input_ids, adapters=[loaded])
    torch.testing.assert_close(model(input_ids).logits, expected, atol=0.05, rtol=0.05)
    assert (weights[f"{changed}.weight"].float() - weights[f"{kept}.weight"].float()).abs().max() > 0.1


def test_tokenizer_comes_along_and_gguf_is_written(codemill: Run, model_directory: Path, tmp_path: Path) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    model = load_model(model_directory)
    make_trained(model_directory, adapter)
    done = codemill("merge", model_directory, adapter, merged, "--type", "f32")
    assert (done.status, done.err) == (0, "")
    assert (merged / "tokenizer.json").read_bytes() == (model_directory / "tokenizer.json").read_bytes()
    assert codemill("merge", model_directory, adapter, tmp_path / "merged.gguf", "--type", "f32").status == 0
    input_ids = random_ids(model, 1, 20)
    logits = load_model(merged)(input_ids)
    assert torch.equal(logits, load_model(tmp_path / "merged.gguf")(input_ids))
    llm = LLM(str(merged))
    assert llm.generate("for value in")[0].outputs[0].token_ids


def make_trained(base: Path, directory: Path) -> None:
    """An adapter for the model in `base`, with random A and B."""
    from codemill.train.adapter import TrainableLora
    from codemill.train.lora_config import LoraSection

    adapter = TrainableLora(load_model(base, "float32"), LoraSection(rank=2))
    with torch.no_grad():
        for each in adapter.each:
            each.b.normal_(std=0.3)
    adapter.save(directory, str(base))


def test_what_does_not_fit_is_one_line_and_writes_nothing(codemill: Run, model_directory: Path, tmp_path: Path) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    make_adapter(adapter, "qwen3", {"target_modules": "all-linear"}, hidden_size=64)
    done = codemill("merge", model_directory, adapter, merged)
    assert done.status == 1
    assert done.err.count("\n") == 1
    assert "adapter_model.safetensors: tensor base_model.model.model.layers" in done.err
    assert not merged.exists()
    done = codemill("merge", model_directory, tmp_path / "none", merged)
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert "adapter_config.json" in done.err


def test_an_adapter_that_names_another_model_is_told(codemill: Run, model_directory: Path, tmp_path: Path) -> None:
    """Models of one shape cannot be told apart, so it is merged all the same."""
    make_trained(model_directory, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(model_directory), "some/Other-Model"))
    done = codemill("merge", model_directory, tmp_path / "adapter", tmp_path / "merged")
    assert done.status == 0
    assert done.err == f"note: the adapter was trained on some/Other-Model, and is merged into {model_directory}\n"


def test_a_model_that_is_there_is_not_replaced_unasked(codemill: Run, model_directory: Path, tmp_path: Path) -> None:
    make_trained(model_directory, tmp_path / "adapter")
    arguments = ("merge", model_directory, tmp_path / "adapter", tmp_path / "merged")
    assert codemill(*arguments).status == 0
    done = codemill(*arguments)
    assert done.status == 2
    assert "holds a model already" in done.err
    assert codemill(*arguments, "--force").status == 0
