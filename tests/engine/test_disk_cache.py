"""Prompts on disk: a new process with the same weights goes on from them, and nobody else does."""

import logging

import pytest
import torch

from codemill import LLM, SamplingParams
from codemill.engine import block_store
from codemill.errors import UsageError
from codemill.models import CausalLM
from models.reference import make_ours

PARAMS = SamplingParams(max_tokens=10, ignore_eos=True)
PROMPT = [[7, 8, 9, 10, 11] * 14]  # 70 tokens


def open_llm(reference, tokenizer, directory, model=None, **options) -> LLM:
    return LLM.from_parts(model or make_ours(reference), tokenizer, block_size=8, prefix_cache_dir=directory, **options)


@pytest.fixture
def kept(reference, tokenizer, tmp_path):
    """A directory with a prompt, and what was answered."""
    llm = open_llm(reference, tokenizer, tmp_path)
    (output,) = llm.generate(PROMPT, PARAMS)
    llm.close()
    return tmp_path, output


def test_a_restart_goes_on_from_the_prompt(reference, tokenizer, kept):
    directory, before = kept
    llm = open_llm(reference, tokenizer, directory)
    (output,) = llm.generate([PROMPT[0] + [1, 2, 3]], SamplingParams(max_tokens=1))
    assert output.metrics.num_cached_tokens == 64
    (again,) = llm.generate(PROMPT, PARAMS)
    assert again.outputs == before.outputs


def test_answers_are_not_kept(reference, tokenizer, kept):
    directory, before = kept
    llm = open_llm(reference, tokenizer, directory)
    longer = [PROMPT[0] + before.outputs[0].token_ids + [5]]
    assert llm.generate(longer, PARAMS)[0].metrics.num_cached_tokens == 64


def test_what_is_damaged_is_named_and_computed(reference, tokenizer, kept, caplog):
    directory, before = kept
    files = sorted(directory.rglob("*.block"))
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    llm = open_llm(reference, tokenizer, directory)
    with caplog.at_level(logging.WARNING, "codemill.engine"):
        (output,) = llm.generate(PROMPT, PARAMS)
    assert output.outputs == before.outputs
    assert output.metrics.num_cached_tokens == 0
    assert any(file.name in caplog.text for file in files)


def test_other_weights_and_other_blocks_find_nothing(reference, tokenizer, kept):
    directory, _ = kept
    changed = make_ours(reference)
    with torch.no_grad():
        changed.model.layers[1].mlp.gate_proj.weight.mul_(2) if hasattr(changed.model.layers[1].mlp, "gate_proj") else (
            changed.model.layers[1].mlp.gate.weight.mul_(2)
        )
    assert open_llm(reference, tokenizer, directory, changed).generate(PROMPT)[0].metrics.num_cached_tokens == 0
    other = LLM.from_parts(make_ours(reference), tokenizer, block_size=4, prefix_cache_dir=directory, state_interval=8)
    assert other.generate(PROMPT)[0].metrics.num_cached_tokens == 0


def test_new_weights_neither_read_nor_write(reference, tokenizer, kept):
    directory, _ = kept
    before = {file: file.stat().st_mtime_ns for file in directory.rglob("*.block")}
    model: CausalLM = make_ours(reference)
    llm = open_llm(reference, tokenizer, directory, model)
    llm.update_weights({"model.norm.weight": torch.ones(model.config.hidden_size)})
    (output,) = llm.generate([PROMPT[0] + [3] * 30], PARAMS)
    llm.close()
    assert output.metrics.num_cached_tokens == 0
    assert {file: file.stat().st_mtime_ns for file in directory.rglob("*.block")} == before


def test_memory_that_is_short_uses_the_disk(reference, tokenizer, kept):
    """What was evicted from memory comes back from disk."""
    directory, before = kept
    llm = open_llm(reference, tokenizer, directory, max_num_seqs=1, max_model_len=120)
    for start in range(100, 160, 20):
        llm.generate([[start + i % 17 for i in range(100)]], PARAMS)
    (output,) = llm.generate(PROMPT, PARAMS)
    assert output.metrics.num_cached_tokens == 64
    assert output.outputs == before.outputs


def test_a_place_that_cannot_be_is_one_line(reference, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        open_llm(reference, tokenizer, tmp_path / "file" / "below")


def no_memory(*_: object) -> None:
    raise MemoryError


def no_torch_memory(*_: object) -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes")


@pytest.mark.parametrize("fail", [no_memory, no_torch_memory])
@pytest.mark.parametrize("place", ["clone", "copy", "read", "decode"])
def test_without_memory_for_the_disk_the_answer_comes_all_the_same(
    reference, tokenizer, kept, fail, place, monkeypatch
):
    directory, expected = kept
    llm = open_llm(reference, tokenizer, directory)
    store = llm.engine._disk.store
    prompts = [PROMPT[0], [9] * 50]
    plain = LLM.from_parts(llm.model, tokenizer).generate(prompts, PARAMS)
    with monkeypatch.context() as patch:
        if place == "clone":
            patch.setattr(torch.Tensor, "clone", fail)
        elif place == "copy":
            views = llm.engine._disk._block
            patch.setattr(
                llm.engine._disk, "_block", lambda block: {k: NoCopy(v, fail) for k, v in views(block).items()}
            )
        elif place == "read":
            patch.setattr(store._directory, "read", fail)
        else:
            patch.setattr(block_store, "decode_entry", fail)
        found = llm.generate(prompts, PARAMS)
    assert [each.outputs for each in found] == [each.outputs for each in plain]
    assert found[0].outputs == expected.outputs
    assert (found[0].metrics.num_cached_tokens > 0) == (place == "clone")
    assert store.counters.dropped > 0 or place != "clone"
    llm.close()
    again = open_llm(reference, tokenizer, directory)
    assert again.generate(PROMPT, PARAMS)[0].metrics.num_cached_tokens > 0, "the files are still there"


class NoCopy:
    """A view of the cache that there is no memory to copy to; it can be cloned."""

    def __init__(self, view: torch.Tensor, fail) -> None:
        self.copy_, self.shape, self.clone = fail, view.shape, view.clone
