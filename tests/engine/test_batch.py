"""How sequences are put into batches, what a cache holds for them, and rows that come and go."""

import pytest
import torch

from codemill import LLM, SamplingParams
from codemill.config import ModelConfig
from codemill.engine import batch as module
from codemill.engine.batch import Batch, plan_batches
from codemill.engine.cache_rows import allocate_rows, grow_capacity, keep_rows, kv_bytes_per_token, repeat_rows
from codemill.engine.prompts import Prompt
from codemill.engine.sequence import Sequence
from codemill.errors import CodemillError
from codemill.models import Cache

CPU = torch.device("cpu")


def make_sequences(llm: LLM, lengths: list[int], **params) -> list[Sequence]:
    asked = SamplingParams(ignore_eos=True, **params)
    prompts = [Prompt(None, (7,) * length) for length in lengths]
    return [sequence for prompt in prompts for sequence in llm._builder.build(prompt, asked).sequences]


def filled_cache(config: ModelConfig, rows: int, capacity: int = 5) -> Cache:
    """Row r holds r + 1 everywhere, and r tokens."""
    cache = allocate_rows(config, rows, capacity, torch.float32, CPU)
    for layer in cache.layers:
        for tensor in vars(layer).values():
            tensor += torch.arange(1.0, rows + 1).view(-1, *[1] * (tensor.dim() - 1))
    cache.lengths = list(range(rows))
    return cache


def rows_of(cache: Cache) -> list[int]:
    """What the rows of all tensors hold, checked to be the same everywhere."""
    (held,) = {
        tuple(tensor.flatten(1).unique(dim=1)[:, 0].tolist())
        for layer in cache.layers
        for tensor in vars(layer).values()
    }
    assert cache.lengths == [value - 1 for value in held]
    return [int(value) - 1 for value in held]


def test_rows_repeat(llm):
    assert rows_of(repeat_rows(filled_cache(llm.model.config, 3), [0, 0, 2, 1, 2])) == [0, 0, 2, 1, 2]


@pytest.mark.parametrize("rows", [[0], [4], [0, 1], [1, 4], [0, 2, 3, 4], [2, 3], [0, 1, 2, 3]])
def test_kept_rows_stay_in_place_where_they_can(llm, rows):
    cache, order = keep_rows(filled_cache(llm.model.config, 5), rows)
    assert rows_of(cache) == order
    assert sorted(order) == rows
    assert all(order[row] == row for row in rows if row < len(rows))


def test_a_grown_cache_keeps_its_content(llm):
    cache = filled_cache(llm.model.config, 3)
    grown = grow_capacity(cache, 9)
    assert (grown.capacity, grown.lengths) == (9, cache.lengths)
    expected = Cache.allocate(llm.model.config, 3, 9)
    for before, after, empty in zip(cache.layers, grown.layers, expected.layers, strict=True):
        for name, tensor in vars(before).items():
            assert getattr(after, name).shape == getattr(empty, name).shape
            size = tensor.shape[1]
            assert torch.equal(getattr(after, name)[:, :size], tensor)
            assert not getattr(after, name)[:, size:].any()


def test_bytes_per_token_are_those_of_the_cache(llm):
    short, longer = (Cache.allocate(llm.model.config, 1, capacity, torch.bfloat16) for capacity in (1, 2))
    sizes = [sum(t.nbytes for layer in cache.layers for t in vars(layer).values()) for cache in (short, longer)]
    assert kv_bytes_per_token(llm.model.config, torch.bfloat16) == sizes[1] - sizes[0]


def test_no_memory_is_one_line(dense_llm):
    with pytest.raises(CodemillError, match=r"not enough memory for a cache of 1 x \d+ tokens: lower max_tokens"):
        allocate_rows(dense_llm.model.config, 1, 2**50, torch.float32, CPU)


def test_the_cache_is_no_larger_than_the_request(dense_llm, monkeypatch):
    capacities = []

    def record(config, rows, capacity, dtype, device):
        capacities.append((rows, capacity))
        return allocate_rows(config, rows, capacity, dtype, device)

    monkeypatch.setattr(module, "allocate_rows", record)
    Batch(dense_llm.model, make_sequences(dense_llm, [3, 5], max_tokens=4)).run()
    Batch(dense_llm.model, make_sequences(dense_llm, [3], max_tokens=400, n=3)).step()
    assert capacities == [(2, 9), (1, 3 + module.FIRST_ROOM)]


def test_at_most_sixteen_rows_of_similar_length(dense_llm):
    sequences = make_sequences(dense_llm, [*range(1, 40)], max_tokens=2)
    batches = plan_batches(dense_llm.model, sequences)
    assert [len(batch) for batch in batches] == [16, 16, 7]
    lengths = [len(sequence.prompt_token_ids) for batch in batches for sequence in batch]
    assert lengths == sorted(range(1, 40), reverse=True)


def test_caches_of_a_batch_stay_within_their_bytes(dense_llm, monkeypatch):
    per_token = kv_bytes_per_token(dense_llm.model.config, torch.float32)
    monkeypatch.setattr(module, "MAX_CACHE_BYTES", 100 * per_token)
    batches = plan_batches(dense_llm.model, make_sequences(dense_llm, [90, 45, 40, 15, 10, 5, 4], max_tokens=5))
    assert [[len(s.prompt_token_ids) for s in batch] for batch in batches] == [[90], [45, 40], [15, 10, 5, 4]]


def test_one_sequence_always_runs(dense_llm, monkeypatch):
    monkeypatch.setattr(module, "MAX_CACHE_BYTES", 1)
    assert [len(batch) for batch in plan_batches(dense_llm.model, make_sequences(dense_llm, [9, 9]))] == [1, 1]


def test_finished_sequences_leave(dense_llm):
    sequences = make_sequences(dense_llm, [2], max_tokens=2) + make_sequences(dense_llm, [4], max_tokens=3)
    batch = Batch(dense_llm.model, sequences)
    sizes = []
    while batch.sequences:
        sizes.append(len(batch.sequences))
        batch.step()
    assert sizes == [2, 2, 1]
    assert [len(sequence.token_ids) for sequence in sequences] == [2, 3]
