"""LoRA adapters as PEFT saves them compute what `peft` computes, several in one pass too."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from codemill.kernels.segments import Segment, Segments
from codemill.models import Cache, CausalLM, ForwardContext
from codemill.models.lora import LoraAdapter, adapted_rows
from models.adapters import EXPERTS, load, make_adapter, random_ids
from models.precision import FP64_TOLERANCE, exact_logits, fp32_limit, in_fp64
from models.reference import make_ours, make_reference

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
DELTANET = ["in_proj_qkvz", "in_proj_ba", "out_proj"]
SHARED = r".*(self_attn\.\w_proj|linear_attn\.(in|out)_proj\w*|shared_expert\.\w+_proj|shared_expert_gate|mlp\.gate)"

# (family, settings of peft's LoraConfig)
CASES = {
    "dense": ("qwen3", {"target_modules": [*ATTENTION, "gate_proj", "up_proj", "down_proj"]}),
    "dense-all-linear": ("qwen3", {"target_modules": "all-linear"}),
    "rslora": ("qwen3", {"target_modules": ATTENTION, "use_rslora": True}),
    "patterns": (
        "qwen3",
        {
            "target_modules": ATTENTION,
            "rank_pattern": {"q_proj": 5, r"layers\.1\.self_attn\.[kv]_proj": 2},
            "alpha_pattern": {"o_proj": 11, "q_proj": 3},
        },
    ),
    "layers": ("qwen3", {"target_modules": ["v_proj"], "layers_to_transform": [1]}),
    "head-and-embedding": ("qwen3", {"target_modules": ["lm_head", "embed_tokens"]}),
    "moe-attention": ("qwen3_moe", {"target_modules": ATTENTION}),
    "moe-all-linear": ("qwen3_moe", {"target_modules": "all-linear"}),
    "moe-experts": ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "moe-down": ("qwen3_moe", {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
    "moe-gate-up": ("qwen3_moe", {"target_modules": [], "target_parameters": ["experts.gate_up_proj"], "r": 1}),
    "moe-patterns": (
        "qwen3_moe",
        {
            "target_modules": [],
            "target_parameters": EXPERTS,
            "rank_pattern": {"gate_up_proj": 5},
            "alpha_pattern": {"down_proj": 2},
        },
    ),
    "hybrid": ("qwen3_next", {"target_modules": [*ATTENTION, *DELTANET], "target_parameters": EXPERTS}),
    "hybrid-shared-expert": ("qwen3_next", {"target_modules": SHARED}),
}


def load_both(directory: Path, model: CausalLM) -> dict[torch.dtype, LoraAdapter]:
    """By dtype. An adapter has to be loaded before `in_fp64`, which takes fp32 for fp64 in reading files too."""
    return {dtype: load(directory, model, dtype) for dtype in (torch.float32, torch.float64)}


def assert_computes(
    ours: CausalLM, compute: Callable[[CausalLM], torch.Tensor], expected: torch.Tensor, limit: float
) -> None:
    with in_fp64(ours) as double:
        assert (compute(double) - expected).abs().max() < FP64_TOLERANCE
    assert (compute(ours) - expected).abs().max() < limit


@pytest.mark.parametrize("case", CASES)
def test_equals_peft(case, tmp_path):
    family, settings = CASES[case]
    ours = make_ours(make_reference(family))
    reference = make_adapter(tmp_path, family, settings)
    input_ids = random_ids(ours, 2, 33)
    expected = exact_logits(reference, input_ids)
    assert (expected - ours(input_ids)).abs().max() > 0.1, "an adapter this weak would hide mistakes"

    adapter = load_both(tmp_path, ours)

    def compute(model):
        return model(input_ids, adapters=[adapter[model.dtype]] * 2)

    assert_computes(ours, compute, expected, fp32_limit(reference, input_ids, expected))


def test_tied_head_and_embedding(tmp_path):
    """An update of one of them leaves the other as it is."""
    changes = {"tie_word_embeddings": True}
    ours = make_ours(make_reference("qwen3", **changes))
    input_ids = random_ids(ours, 1, 20)
    for target in ("lm_head", "embed_tokens"):
        directory = tmp_path / target
        expected = exact_logits(make_adapter(directory, "qwen3", {"target_modules": [target]}, **changes), input_ids)
        adapter = load(directory, ours, torch.float64)
        with in_fp64(ours) as double:
            logits = double(input_ids, adapters=[adapter])
        assert (logits - expected).abs().max() < FP64_TOLERANCE, target


def save_experts_one_by_one(directory: Path, projections: list[str], ranks: dict[str, int]) -> None:
    """An adapter as libraries save it that hold experts one by one."""
    generator = torch.Generator().manual_seed(3)
    sizes = {"gate_proj": (24, 32), "up_proj": (24, 32), "down_proj": (32, 24)}
    tensors = {}
    for layer in range(2):
        for expert in range(8):
            for projection in projections:
                name = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{projection}"
                out_features, in_features = sizes[projection]
                rank = ranks.get(projection, 3)
                tensors[f"{name}.lora_A.weight"] = torch.randn(rank, in_features, generator=generator) * 0.3
                tensors[f"{name}.lora_B.weight"] = torch.randn(out_features, rank, generator=generator)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 7, "target_modules": projections, "rank_pattern": ranks}
    (directory / "adapter_config.json").write_text(json.dumps(config))


def test_experts_one_by_one_equal_peft(tmp_path):
    """`peft` stacks such adapters when it loads them."""
    save_experts_one_by_one(tmp_path, ["gate_proj", "up_proj", "down_proj"], {})
    ours = make_ours(make_reference("qwen3_moe"))
    reference = peft.PeftModel.from_pretrained(make_reference("qwen3_moe"), tmp_path).eval()
    input_ids = random_ids(ours, 1, 33)
    expected = exact_logits(reference, input_ids)
    assert (expected - ours(input_ids)).abs().max() > 0.1

    adapter = load_both(tmp_path, ours)

    def compute(model):
        return model(input_ids, adapters=[adapter[model.dtype]])

    assert_computes(ours, compute, expected, fp32_limit(reference, input_ids, expected))


@pytest.mark.parametrize("projections", [["gate_proj"], ["up_proj"], ["up_proj", "gate_proj"], ["down_proj"]])
def test_experts_one_by_one_equal_changed_weights(projections, tmp_path):
    """Gate or up alone, or of different ranks, as `peft` does not take them: against weights with the update added."""
    ranks = {"up_proj": 5}
    save_experts_one_by_one(tmp_path, projections, ranks)
    ours = make_ours(make_reference("qwen3_moe"))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    input_ids = random_ids(ours, 1, 33)
    adapter = load(tmp_path, ours, torch.float64)
    with in_fp64(ours) as double:
        found = double(input_ids, adapters=[adapter])
        assert (found - double(input_ids)).abs().max() > 0.1
        for name in [name for name in tensors if ".lora_A." in name]:
            a, b = tensors[name].double(), tensors[name.replace("lora_A", "lora_B")].double()
            layer, expert, projection = (name.split(".")[index] for index in (4, 7, 8))
            experts = double.model.layers[int(layer)].mlp.experts
            gate_up = experts.gate_up_proj[int(expert)].chunk(2)
            targets = {"gate_proj": gate_up[0], "up_proj": gate_up[1], "down_proj": experts.down_proj[int(expert)]}
            targets[projection] += 7 / ranks.get(projection, 3) * b @ a
        assert (found - double(input_ids)).abs().max() < FP64_TOLERANCE


BLOCK_SIZE = 16


class Paged:
    """Sequences over one cache, each with its own adapter or None."""

    def __init__(self, model: CausalLM, adapters: list[LoraAdapter | None]) -> None:
        self.model, self.adapters = model, adapters
        self.cache = Cache.allocate_blocks(model.config, 8 * len(adapters), BLOCK_SIZE, len(adapters))
        self.lengths = [0] * len(adapters)

    def feed(self, pieces: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Feed each sequence its piece [1, T] in one pass -> its logits."""
        each = tuple(
            Segment(piece.shape[1], self.lengths[i], range(8 * i, 8 * i + 8), state_slot=i)
            for i, piece in pieces.items()
        )
        segments = Segments(each, BLOCK_SIZE, torch.device("cpu"))
        input_ids = torch.cat(list(pieces.values()), dim=1)
        adapters, counts = [self.adapters[i] for i in pieces], [piece.shape[1] for piece in pieces.values()]
        context = ForwardContext.build(
            self.model.config, self.model.dtype, input_ids, segments=segments, adapters=adapters
        )
        hidden = self.model.compute(input_ids, context, self.cache)
        logits = self.model.logits(hidden, adapted_rows(adapters, counts, input_ids.device))
        for i, count in zip(pieces, counts, strict=True):
            self.lengths[i] += count
        return dict(zip(pieces, logits.split(counts, dim=1), strict=True))


PAGED = {
    "qwen3": {"target_modules": [*ATTENTION, "up_proj", "down_proj", "lm_head", "embed_tokens"]},
    "qwen3_moe": {"target_modules": ATTENTION, "target_parameters": EXPERTS},
    "qwen3_next": {"target_modules": [*ATTENTION, *DELTANET, "lm_head"], "target_parameters": EXPERTS},
}


@pytest.mark.parametrize("family", PAGED)
def test_several_adapters_in_one_pass_equal_each_alone(family, tmp_path):
    """Two adapters and none; one of them has rows with others between; prefill and decode are mixed."""
    ours = make_ours(make_reference(family))
    references = [
        make_adapter(tmp_path / "a", family, PAGED[family]),
        make_adapter(tmp_path / "b", family, {**PAGED[family], "r": 2}, seed=1),
        make_reference(family),
    ]
    owners = [0, 2, 0, 1, 1]
    rows = [random_ids(ours, 1, length, seed) for seed, length in enumerate([70, 40, 9, 33, 66])]
    passes = [{0: 65, 1: 3, 2: 8}, {0: 4, 1: 36, 3: 32}, {0: 1, 1: 1, 2: 1, 3: 1, 4: 66}]
    expected = [exact_logits(references[owner], row) for owner, row in zip(owners, rows, strict=True)]
    limit = max(
        fp32_limit(references[owner], row, logits) for owner, row, logits in zip(owners, rows, expected, strict=True)
    )

    adapters = [load_both(tmp_path / name, ours) for name in "ab"]

    def compute(model):
        paged = Paged(model, [None if owner == 2 else adapters[owner][model.dtype] for owner in owners])
        found: dict[int, list[torch.Tensor]] = {i: [] for i in range(len(rows))}
        for sizes in passes:
            pieces = {i: rows[i][:, paged.lengths[i] : paged.lengths[i] + size] for i, size in sizes.items()}
            for i, logits in paged.feed(pieces).items():
                found[i].append(logits)
        return torch.cat([piece for pieces in found.values() for piece in pieces], dim=1)

    assert_computes(ours, compute, torch.cat(expected, dim=1), limit)


def test_rows_of_an_adapter():
    first, second = (LoraAdapter(name, None, b"") for name in "ab")
    device = torch.device("cpu")
    assert [each.rows for each in adapted_rows([first, first], [3, 2], device)] == [slice(0, 5)]
    assert [each.rows for each in adapted_rows([None, first, second], [3, 2, 1], device)] == [slice(3, 5), slice(5, 6)]
    (scattered, _) = adapted_rows([first, second, None, first], [2, 1, 1, 2], device)
    assert scattered.rows.tolist() == [0, 1, 4, 5]
    assert adapted_rows([first, None], [0, 4], device) == ()


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_next"])
def test_packed_documents_with_an_adapter_equal_documents_alone(family, tmp_path):
    ours = make_ours(make_reference(family))
    make_adapter(tmp_path, family, PAGED[family])
    documents = [random_ids(ours, 1, length, seed) for seed, length in enumerate([20, 1, 70])]
    lengths = [document.shape[1] for document in documents]
    packed = {
        "input_ids": torch.cat(documents, dim=1),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "document_ids": torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None],
    }
    adapters = [load(tmp_path, ours, torch.float64)]
    with in_fp64(ours) as double:
        alone = torch.cat([double(document, adapters=adapters) for document in documents], dim=1)
        assert (double(**packed, adapters=adapters) - alone).abs().max() < FP64_TOLERANCE


@pytest.mark.parametrize("others", [[], [None]])
def test_gradients_of_an_adapter_equal_pefts(others, tmp_path):
    """Of A and B, of a projection and of stacked experts; also where other rows have no adapter."""
    ours = make_ours(make_reference("qwen3_moe")).double()
    reference = make_adapter(tmp_path, "qwen3_moe", PAGED["qwen3_moe"]).double()
    adapter = load(tmp_path, ours, torch.float64)
    updates, name = adapter.updates, "model.layers.0.mlp.experts"
    query, experts = updates.linears["model.layers.1.self_attn.q_proj"], updates.experts[name].gate_up
    for tensor in (query.a, query.b, *(each.b for each in experts)):
        tensor.requires_grad_()
    input_ids = random_ids(ours, 1 + len(others), 20)
    ours(input_ids, adapters=[adapter, *others])[0].logsumexp(-1).sum().backward()
    reference(input_ids[:1]).logits.logsumexp(-1).sum().backward()
    expected = {key: parameter.grad for key, parameter in reference.named_parameters() if parameter.grad is not None}
    prefix = "base_model.model."
    for side, found in (("A", query.a.grad), ("B", query.b.grad)):
        key = f"{prefix}model.layers.1.self_attn.q_proj.lora_{side}.default.weight"
        torch.testing.assert_close(found, expected[key], rtol=1e-4, atol=1e-6)
    stacked = expected[f"{prefix}{name}.base_layer.lora_B.default.weight"].unflatten(1, (3, 8))  # [2F, r, E]
    for index, each in enumerate(experts):
        found = torch.zeros_like(each.b) if each.b.grad is None else each.b.grad
        torch.testing.assert_close(found, stacked[:, :, index], rtol=1e-4, atol=1e-6)
