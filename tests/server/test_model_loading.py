"""Real engines of tiny models: loaded by a registry, and gone from memory once they are unloaded."""

import asyncio
import resource
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from codemill import LLM, SamplingParams
from codemill.data.bpe import save_tokenizer, train_tokenizer
from codemill.engine.async_engine import AsyncEngine
from codemill.errors import CodemillError, UsageError
from codemill.models import save_pretrained
from codemill.server.model_entry import ModelDefinition
from codemill.server.model_loading import EngineLoader, check_definition, free_memory, model_name
from codemill.server.registry import Registry
from engine.conftest import TEXT
from models.reference import make_ours, make_reference

VOCAB_SIZE = 320
GREEDY = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
SMALL = {"dtype": "float32", "kv_cache_bytes": 8 << 20}


def save_model(folder: Path, **changes: int) -> Path:
    save_pretrained(make_ours(make_reference("qwen3", **{"vocab_size": VOCAB_SIZE, **changes})), folder)
    save_tokenizer(train_tokenizer(TEXT, VOCAB_SIZE), folder)
    return folder


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come true")


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_loaded_model_answers_as_the_llm_does(directory: Path) -> None:
    expected = LLM(directory, **SMALL).generate("def add", GREEDY)[0].outputs[0].token_ids
    load = EngineLoader(SMALL, max_waiting=3)
    registry = Registry([ModelDefinition("tiny", str(directory), options={"max_num_seqs": 2})], load)

    async def main() -> None:
        async with registry.lease("tiny") as model:
            assert model.call_style == "qwen3_coder"
            assert model.max_model_len == 512
            output = await model.engine.generate("def add", GREEDY)
            assert output.outputs[0].token_ids == expected
        assert (await registry.metrics())["tiny"]["generated_tokens"] == 5
        await registry.close()

    asyncio.run(main())


def test_options_of_a_model_win(directory: Path) -> None:
    loader = EngineLoader({**SMALL, "max_model_len": 512})
    with loader(ModelDefinition("tiny", str(directory), options={"max_model_len": 64})) as engine:
        assert engine.max_model_len == 64


def test_a_model_that_cannot_be_loaded_says_why(directory: Path, tmp_path: Path) -> None:
    registry = Registry([ModelDefinition("tiny", str(directory))], EngineLoader({"max_model_len": 1 << 20}))
    with pytest.raises(CodemillError, match="the model tiny cannot be loaded: max_model_len = 1048576") as caught:
        asyncio.run(registry.start())
    assert not isinstance(caught.value, UsageError), "a client would be told that its request is wrong"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_unloading_gives_the_memory_back(tmp_path: Path) -> None:
    rows, width = 80_000, 256
    directory = save_model(tmp_path, vocab_size=rows, hidden_size=width, num_hidden_layers=1)
    weights = 2 * rows * width * 2  # embedding and head; in another dtype than the file's, so that they are no mapping
    loader = EngineLoader({"dtype": "bfloat16", "kv_cache_bytes": 8 << 20})
    registry = Registry([ModelDefinition("big", str(directory))], loader, idle_seconds=0.1, free=free_memory)
    networks: list[weakref.ref[torch.nn.Module]] = []

    async def main() -> None:
        registry._pool.start()
        before = resident_bytes()
        async with registry.lease(None) as model:
            assert isinstance(model.engine, AsyncEngine)
            networks.append(await model.engine.call(lambda llm: weakref.ref(llm.model)))
            await model.engine.generate([5, 6, 7], GREEDY)
            loaded = resident_bytes()
        del model
        assert loaded - before > 0.8 * weights
        await until(lambda: networks[0]() is None)
        await until(lambda: resident_bytes() - before < 0.2 * weights)
        assert await registry.metrics() == {}
        async with registry.lease(None) as model:
            await model.engine.generate([5, 6, 7], GREEDY)
        await registry.close()

    free_memory()  # what tests before this one left
    asyncio.run(main())


@pytest.mark.slow
def test_replicas_are_served_as_one_engine(directory: Path) -> None:
    expected = LLM(directory, **SMALL).generate("def add", GREEDY)[0].outputs[0].token_ids
    registry = Registry([ModelDefinition("tiny", str(directory))], EngineLoader(SMALL, num_replicas=2))

    async def main() -> None:
        await registry.start()
        async with registry.lease("tiny") as model:
            outputs = await asyncio.gather(*[model.engine.generate("def add", GREEDY) for _ in range(4)])
            assert [output.outputs[0].token_ids for output in outputs] == [expected] * 4
        assert (await registry.metrics())["tiny"]["generated_tokens"] == 20
        await registry.close(0.0)

    asyncio.run(main())


def test_a_model_is_called_after_its_spec(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_name(None) == "embedded"
    assert model_name(str(directory) + "/") == directory.name
    assert model_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert model_name("random:qwen3-0.6b") == "random:qwen3-0.6b"
    monkeypatch.chdir(directory)
    assert model_name(".") == directory.name
    gguf = tmp_path / "coder-q4.gguf"
    gguf.write_bytes(b"GGUF")
    assert model_name(str(gguf)) == "coder-q4"


def test_what_is_wrong_with_a_definition_is_found_early(directory: Path, tmp_path: Path) -> None:
    check_definition(ModelDefinition("tiny", str(directory)))
    with pytest.raises(UsageError, match="adapter sql"):
        check_definition(ModelDefinition("tiny", str(directory), adapters={"sql": tmp_path}))
    with pytest.raises(CodemillError, match=r"config\.json"):
        check_definition(ModelDefinition("tiny", str(tmp_path)))
