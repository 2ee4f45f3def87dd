"""LoRA adapters by name over HTTP, on the embedded model, which computes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from codemill.models import load_model
from codemill.server.model_entry import ModelDefinition
from codemill.server.model_loading import EngineLoader
from codemill.server.registry import Registry

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")


def save_adapter(directory: Path, seed: int) -> Path:
    """An adapter of peft's own making, whose weights are not zero."""
    transformers = pytest.importorskip("transformers")
    source = Path(load_model.__code__.co_filename).parents[1] / "embedded"
    network = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(seed)
    peft.get_peft_model(network, config).save_pretrained(directory)
    return directory


def test_adapters_answer_under_their_names_at_the_same_time(serve, tmp_path):
    adapters = {name: save_adapter(tmp_path / name, seed) for seed, name in enumerate(("one", "team/two"))}
    definition = ModelDefinition("base", None, adapters=adapters)
    registry = Registry([definition], EngineLoader({"kv_cache_bytes": 8 << 20, "max_model_len": 256}), is_lazy=True)
    client = serve(registry=registry)

    def ask(name: str) -> tuple[str, str]:
        body = {"model": name, "prompt": "def add(a, b):", "max_tokens": 24, "temperature": 0}
        answer = client.post("/v1/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer.json()["model"], answer.json()["choices"][0]["text"]

    names = ["base", "one", "team/two"]
    alone = {name: ask(name)[1] for name in names}
    assert len(set(alone.values())) == 3
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(ask, names * 4)) == [(name, alone[name]) for name in names] * 4
    assert client.post("/v1/completions", json={"model": "three", "prompt": "x"}).status_code == 404


def test_an_adapter_that_does_not_fit_is_no_mistake_of_the_client(serve, tmp_path):
    directory = save_adapter(tmp_path / "broken", 0)
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA", "r": -1}')
    definition = ModelDefinition("base", None, adapters={"broken": directory})
    registry = Registry([definition], EngineLoader({"kv_cache_bytes": 8 << 20, "max_model_len": 256}), is_lazy=True)
    answer = serve(registry=registry).post("/v1/completions", json={"model": "broken", "prompt": "x"})
    assert (answer.status_code, "the adapter broken cannot be loaded" in answer.text) == (500, True), answer.text
