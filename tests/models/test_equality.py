"""Our networks compute what `transformers` computes, however the tokens are fed."""

from collections.abc import Callable
from itertools import accumulate, pairwise

import pytest
import torch
import transformers

from codemill.kernels.segments import Segment, Segments
from codemill.models import Cache, CausalLM, ForwardContext
from models.precision import FP64_TOLERANCE, exact_logits, fp32_limit, in_fp64
from models.reference import make_ours, make_reference

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}

# (family, changes to the shape, tokens); lengths sit around the DeltaNet chunk of 64.
DENSE = [
    ({}, 33),
    ({"num_key_value_heads": 4}, 20),
    ({"num_key_value_heads": 1}, 64),
    ({"num_attention_heads": 6, "num_key_value_heads": 3}, 65),
    ({"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}, 17),
    ({"head_dim": 8}, 31),
    ({"tie_word_embeddings": True}, 40),
    ({"num_hidden_layers": 5, "intermediate_size": 20}, 50),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e7}}, 90),
    ({"rope_parameters": YARN}, 150),
    ({"rope_parameters": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3}}, 70),
    ({"attention_bias": True}, 30),
    ({"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 12}, 1),
    ({"rms_norm_eps": 1e-3, "vocab_size": 301}, 128),
    ({"rope_parameters": {**YARN, "beta_fast": 1.0, "beta_slow": 32.0}}, 40),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, 20),
]
MOE = [
    ({}, 33),
    ({"num_experts_per_tok": 1}, 30),
    ({"num_experts_per_tok": 8}, 20),
    ({"num_experts": 16, "num_experts_per_tok": 10}, 64),
    ({"num_experts": 5, "num_experts_per_tok": 3}, 65),
    ({"norm_topk_prob": False}, 40),
    ({"decoder_sparse_step": 2, "num_hidden_layers": 4}, 25),
    ({"mlp_only_layers": [0], "num_hidden_layers": 3}, 25),
    ({"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 24}, 63),
    ({"moe_intermediate_size": 7, "tie_word_embeddings": True}, 50),
    ({"rope_parameters": YARN}, 130),
    ({"num_experts": 32, "num_experts_per_tok": 4, "hidden_size": 48}, 1),
]
HYBRID = [
    ({}, 33),
    ({}, 64),
    ({}, 65),
    ({"linear_num_key_heads": 4}, 63),
    ({"linear_num_key_heads": 1, "linear_num_value_heads": 3}, 128),
    ({"linear_key_head_dim": 24, "linear_value_head_dim": 12}, 129),
    ({"linear_conv_kernel_dim": 2}, 127),
    ({"num_experts_per_tok": 1, "num_hidden_layers": 5}, 1),
    ({"num_experts": 16, "num_experts_per_tok": 10}, 2),
    ({"layer_types": ["full_attention", "linear_attention"] * 2}, 70),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5}}, 192),
    ({"rope_parameters": {**YARN, "partial_rotary_factor": 0.5}}, 100),
    ({"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 32}, 3),
    ({"mlp_only_layers": [1], "norm_topk_prob": False}, 200),
    ({"head_dim": 20}, 66),
]
CASES = [
    pytest.param(family, changes, tokens, id=f"{family}-{index}")
    for family, table in (("qwen3", DENSE), ("qwen3_moe", MOE), ("qwen3_next", HYBRID))
    for index, (changes, tokens) in enumerate(table)
]


@pytest.fixture
def pair(family: str, changes: dict[str, object]) -> tuple[transformers.PreTrainedModel, CausalLM]:
    reference = make_reference(family, **changes)
    return reference, make_ours(reference)


def random_ids(model: CausalLM, batch_size: int, tokens: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (batch_size, tokens), generator=generator)


def feed(model: CausalLM, input_ids: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    """Logits of all tokens, computed piece by piece over one cache; pieces beyond the last token are left out."""
    ends = [min(end, input_ids.shape[1]) for end in accumulate(pieces)]
    sizes = [end - start for start, end in pairwise([0, *ends]) if end > start]
    cache = Cache.allocate(model.config, input_ids.shape[0], input_ids.shape[1])
    return torch.cat([model(piece, cache) for piece in input_ids.split(sizes, dim=1)], dim=1)


def assert_computes(
    ours: CausalLM, compute: Callable[[CausalLM], torch.Tensor], expected: torch.Tensor, fp32_limit: float, name: str
) -> None:
    """`compute` yields the expected logits: exactly in fp64, and as nearly as fp32 can in fp32."""
    with in_fp64(ours) as double:
        assert (compute(double) - expected).abs().max() < FP64_TOLERANCE, name
    assert (compute(ours) - expected).abs().max() < fp32_limit, f"{name}, in fp32"


def assert_computes_each(ours, compute, reference, rows):
    """`compute` yields the logits [1, T, vocab] of all rows [1, t] one after the other, as if each were alone."""
    expected = [exact_logits(reference, row) for row in rows]
    limit = max(fp32_limit(reference, row, logits) for row, logits in zip(rows, expected, strict=True))
    assert_computes(ours, compute, torch.cat(expected, dim=1), limit, "all rows")


@pytest.mark.parametrize(("family", "changes", "tokens"), CASES)
def test_equals_transformers_however_tokens_are_fed(pair, tokens):
    reference, ours = pair
    input_ids = random_ids(ours, 2, tokens)
    expected = exact_logits(reference, input_ids)
    assert expected.abs().max() > 0.5, "logits this small would hide mistakes"
    limit = fp32_limit(reference, input_ids, expected)
    ways = {
        "without a cache": lambda model: model(input_ids),
        "whole": lambda model: feed(model, input_ids, [tokens]),
        "token by token": lambda model: feed(model, input_ids, [1] * tokens),
        "in two": lambda model: feed(model, input_ids, [tokens // 3, tokens - tokens // 3]),
        "uneven": lambda model: feed(model, input_ids, [5, 66, max(0, tokens - 71)]),
    }
    for name, compute in ways.items():
        assert_computes(ours, compute, expected, limit, name)


BLOCK_SIZE = 16


class Paged:
    """A cache whose blocks are handed to sequences in a scattered order, and one pass after the other over it."""

    def __init__(self, model: CausalLM, num_sequences: int, num_states: int) -> None:
        self.model = model
        self.cache = Cache.allocate_blocks(model.config, 64, BLOCK_SIZE, num_states)
        self.tables = [[(7 * (i * 10 + j)) % 64 for j in range(10)] for i in range(num_sequences)]
        self.lengths = [0] * num_sequences

    def feed(self, pieces: dict[int, torch.Tensor], **marks: dict[int, object]) -> dict[int, torch.Tensor]:
        """Feed each sequence its piece [1, T] in one pass -> its logits; `marks` are further fields of its segment."""
        each = tuple(
            Segment(
                piece.shape[1], self.lengths[i], self.tables[i], state_slot=i,
                **{name: values[i] for name, values in marks.items() if i in values},
            )
            for i, piece in pieces.items()
        )  # fmt: skip
        segments = Segments(each, BLOCK_SIZE, torch.device("cpu"))
        input_ids = torch.cat(list(pieces.values()), dim=1)
        self.context = ForwardContext.build(self.model.config, self.model.dtype, input_ids, segments=segments)
        logits = self.model.logits(self.model.compute(input_ids, self.context, self.cache))
        for i, piece in pieces.items():
            self.lengths[i] += piece.shape[1]
        return dict(zip(pieces, logits.split([piece.shape[1] for piece in pieces.values()], dim=1), strict=True))


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "qwen3_next"])
def test_sequences_in_one_pass_equal_sequences_alone(family):
    """Prefill, decode, and both mixed, over scattered blocks; sequences come and go between passes."""
    reference = make_reference(family)
    ours = make_ours(reference)
    rows = [random_ids(ours, 1, length, seed) for seed, length in enumerate([73, 6, 140, 66])]
    passes = [{0: 70, 1: 3}, {0: 1, 1: 1, 2: 64}, {0: 1, 1: 1, 2: 1}, {2: 67, 3: 1}, {0: 1, 1: 1, 2: 8, 3: 65}]

    def in_passes(model):
        paged = Paged(model, 4, 4)
        found = {i: [] for i in range(4)}
        for sizes in passes:
            pieces = {i: rows[i][:, paged.lengths[i] : paged.lengths[i] + size] for i, size in sizes.items()}
            for i, logits in paged.feed(pieces).items():
                found[i].append(logits)
        return torch.cat([piece for pieces in found.values() for piece in pieces], dim=1)

    assert_computes_each(ours, in_passes, reference, rows)


@pytest.mark.parametrize("accepted", range(4))
@pytest.mark.parametrize("family", ["qwen3", "qwen3_next"])
def test_drafts_are_taken_back_as_far_as_they_are_wrong(family, accepted):
    reference = make_reference(family)
    ours = make_ours(reference)
    row, wrong = random_ids(ours, 1, 30), random_ids(ours, 1, 30, seed=9)

    def with_drafts(model):
        paged = Paged(model, 1, 1)
        first = paged.feed({0: row[:, :20]})[0]
        drafts = torch.cat((row[:, 21 : 21 + accepted], wrong[:, : 3 - accepted]), dim=1)
        verified = paged.feed({0: torch.cat((row[:, 20:21], drafts), dim=1)}, num_uncertain={0: 3})[0]
        paged.context.commit([accepted])
        paged.lengths[0] = 21 + accepted
        rest = paged.feed({0: row[:, paged.lengths[0] :]})[0]
        return torch.cat((first, verified[:, : 1 + accepted], rest), dim=1)

    assert_computes_each(ours, with_drafts, reference, [row])


@pytest.mark.parametrize("after", [(16,), (16, 40), (48,), (50,)])
def test_a_checkpoint_continues_as_the_sequence_did(after):
    """The state after so many tokens is kept in other slots; another sequence with the same beginning starts there."""
    reference = make_reference("qwen3_next")
    ours = make_ours(reference)
    row, other = random_ids(ours, 1, 60), random_ids(ours, 1, 80, seed=5)
    start = after[-1]

    def from_checkpoint(model):
        paged = Paged(model, 2, 4)
        logits = paged.feed({0: row[:, :50]}, checkpoints={0: tuple((n, 2 + i) for i, n in enumerate(after))})[0]
        for layer in paged.cache.linear_states:
            layer.copy_slot(1 + len(after), 1)
        paged.tables[1] = paged.tables[0][: -(-start // BLOCK_SIZE)] + paged.tables[1]
        paged.lengths[1] = start
        more = paged.feed({1: other[:, start:]})[1] if start % BLOCK_SIZE == 0 else None
        rest = paged.feed({0: row[:, 50:]})[0]
        return torch.cat([logits, rest] if more is None else [logits, rest, more], dim=1)

    mixed = torch.cat((row[:, :start], other[:, start:]), dim=1)
    expected = exact_logits(reference, row)
    if start % BLOCK_SIZE == 0:
        expected = torch.cat((expected, exact_logits(reference, mixed)[:, start:]), dim=1)
    limit = fp32_limit(reference, row, exact_logits(reference, row))
    assert_computes(ours, from_checkpoint, expected, limit, "from a checkpoint")


LENGTHS = [30, 1, 70, 64, 2]


def pack(documents):
    """Arguments of the network for one row of all documents."""
    lengths = [document.shape[1] for document in documents]
    return {
        "input_ids": torch.cat(documents, dim=1),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "document_ids": torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None],
    }


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "qwen3_next"])
def test_packed_documents_equal_documents_alone(family):
    reference = make_reference(family)
    ours = make_ours(reference)
    documents = [random_ids(ours, 1, length, seed) for seed, length in enumerate(LENGTHS)]
    assert_computes_each(ours, lambda model: model(**pack(documents)), reference, documents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "qwen3_next"])
def test_packed_documents_do_not_see_each_other(family, dtype):
    """To the last bit: others of the same lengths change nothing, not even by where their tokens are routed."""
    # Many experts with few tokens each, as the rounding of products depends on the number of rows where that is small.
    many = {} if family == "qwen3" else {"num_experts": 32, "num_experts_per_tok": 3}
    ours = make_ours(make_reference(family, **many)).to(dtype)
    documents = [random_ids(ours, 1, length, seed) // 2 for seed, length in enumerate(LENGTHS)]
    before = ours(**pack(documents)).split(LENGTHS, dim=1)
    for changed in range(len(LENGTHS)):
        others = [document + (index == changed) for index, document in enumerate(documents)]
        after = ours(**pack(others)).split(LENGTHS, dim=1)
        same = [torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert same == [index != changed for index in range(len(LENGTHS))]


def test_gradients_flow_through_packed_documents():
    for family in ("qwen3", "qwen3_moe", "qwen3_next"):
        ours = make_ours(make_reference(family)).requires_grad_(True)
        document_ids = torch.tensor([[0] * 40 + [1] * 41])
        ours(random_ids(ours, 1, 81), document_ids=document_ids).logsumexp(-1).sum().backward()
        for name, parameter in ours.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
