"""The multi-token prediction head computes what `transformers`' modules, put together as published, compute."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextDecoderLayer,
    Qwen3NextRMSNorm,
    Qwen3NextRotaryEmbedding,
)

from codemill import presets
from codemill.config import ModelConfig
from codemill.errors import CodemillError
from codemill.kernels.segments import Segment, Segments
from codemill.models import Cache, CausalLM, ForwardContext, load_model, save_pretrained
from codemill.models.loader import load_mtp
from codemill.models.mtp import MtpHead
from codemill.models.skeleton import build_mtp
from models.precision import FP64_TOLERANCE, in_fp64
from models.reference import make_ours, make_reference

BLOCK_SIZE = 16
NUM_BLOCKS = 64
WEIGHTS = "model.safetensors"
EXPERT = "mtp.layers.0.mlp.experts.6.up_proj.weight"
# Changes to the tiny shape of `make_reference`; a head has experts also where layers of its target go without.
SHAPES = [
    {},
    {"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 32},
    {"num_experts": 16, "num_experts_per_tok": 10, "norm_topk_prob": False},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5}},
    {"mlp_only_layers": [0], "rms_norm_eps": 1e-3},
]


class ReferenceHead(nn.Module):
    """The head of `transformers`' modules; they have the names of ours, so a state dict of one fits the other."""

    def __init__(self, config: transformers.Qwen3NextConfig) -> None:
        super().__init__()
        one_layer = {"num_hidden_layers": 1, "layer_types": ["full_attention"], "mlp_only_layers": []}
        config = transformers.Qwen3NextConfig(**{**config.to_dict(), **one_layer})
        config._attn_implementation = config._experts_implementation = "eager"
        size, eps = config.hidden_size, config.rms_norm_eps
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden, self.norm = (
            Qwen3NextRMSNorm(size, eps=eps) for _ in range(3)
        )
        self.fc = nn.Linear(2 * size, size, bias=False)
        self.layers = nn.ModuleList([Qwen3NextDecoderLayer(config, 0)])
        self.rotary_emb = Qwen3NextRotaryEmbedding(config)

    def forward(self, embedding: Tensor, hidden: Tensor) -> Tensor:
        """The embeddings of the next tokens and the target's hidden states, [B, T, D] both -> [B, T, D]."""
        num_tokens = hidden.shape[1]
        positions = torch.arange(num_tokens)[None]
        mask = torch.full((num_tokens, num_tokens), float("-inf"), dtype=hidden.dtype).triu(1)[None, None]
        x = torch.cat([self.pre_fc_norm_embedding(embedding), self.pre_fc_norm_hidden(hidden)], dim=-1)
        x = self.fc(x)
        x = self.layers[0](x, position_embeddings=self.rotary_emb(x, positions), attention_mask=mask)
        return self.norm(x)


@dataclass(frozen=True)
class Pair:
    """A target and its head, as `transformers` has them and as we do, with the same weights."""

    reference: transformers.PreTrainedModel
    reference_head: ReferenceHead
    model: CausalLM
    head: MtpHead


def make_pair(**changes: Any) -> Pair:
    reference = make_reference("qwen3_next", **changes)
    reference_head = ReferenceHead(reference.config).eval().requires_grad_(False)
    for name, parameter in reference_head.named_parameters():
        if "norm" in name:
            parameter.normal_(0, 0.2)
        else:
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
    model = make_ours(reference)
    head = MtpHead(model.config).eval().requires_grad_(False)
    head.load_state_dict(reference_head.state_dict())
    return Pair(reference, reference_head, model, head)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair()


def random_ids(num_tokens: int, seed: int = 1) -> Tensor:
    return torch.randint(97, (1, num_tokens), generator=torch.Generator().manual_seed(seed))


def expected_hidden(pair: Pair, ids: Tensor) -> Tensor:
    """Hidden states [1, T - 1, D] of the reference's head over all pairs of ids [1, T], in fp64."""
    with in_fp64(pair.reference) as reference, in_fp64(pair.reference_head) as head:
        hidden = reference.model(ids[:, :-1]).last_hidden_state
        return head(reference.model.embed_tokens(ids[:, 1:]), hidden)


class PagedHead:
    """The head's cache, in blocks that are handed to sequences in a scattered order."""

    def __init__(self, head: MtpHead, model: CausalLM, num_sequences: int) -> None:
        self.head, self.model = head, model
        self.cache = Cache.allocate_blocks(head.config, NUM_BLOCKS, BLOCK_SIZE, 0, model.dtype)
        self.tables = [[(7 * (i * 10 + j)) % NUM_BLOCKS for j in range(10)] for i in range(num_sequences)]
        self.lengths = [0] * num_sequences

    def feed(self, pieces: dict[int, tuple[Tensor, Tensor]]) -> dict[int, Tensor]:
        """Feed each sequence next ids [1, T] and hidden states [1, T, D] in one pass -> its hidden states."""
        sizes = {i: ids.shape[1] for i, (ids, _) in pieces.items()}
        each = tuple(Segment(size, self.lengths[i], self.tables[i]) for i, size in sizes.items())
        next_ids, hidden = (torch.cat(parts, dim=1) for parts in zip(*pieces.values(), strict=True))
        segments = Segments(each, BLOCK_SIZE, torch.device("cpu"))
        context = ForwardContext.build(self.model.config, self.model.dtype, next_ids, segments=segments)
        out = self.head(next_ids, hidden, self.model, context, self.cache.kv_caches[0])
        for i, size in sizes.items():
            self.lengths[i] += size
        return dict(zip(sizes, out.split(list(sizes.values()), dim=1), strict=True))


@pytest.mark.parametrize("changes", SHAPES)
def test_equals_transformers_whole_and_token_by_token(changes: dict[str, Any]) -> None:
    pair = make_pair(**changes)
    ids = random_ids(71)
    expected = expected_hidden(pair, ids)
    assert expected.abs().max() > 0.5, "states this small would hide mistakes"
    with in_fp64(pair.model) as model, in_fp64(pair.head) as head:
        next_ids, hidden = ids[:, 1:], model.hidden_states(ids[:, :-1])
        context = ForwardContext.build(model.config, model.dtype, next_ids)
        whole = head(next_ids, hidden, model, context)
        paged = PagedHead(head, model, 1)
        steps = [paged.feed({0: (next_ids[:, i : i + 1], hidden[:, i : i + 1])})[0] for i in range(70)]
    assert (whole - expected).abs().max() < FP64_TOLERANCE
    assert (torch.cat(steps, dim=1) - expected).abs().max() < FP64_TOLERANCE


def test_sequences_in_one_pass_equal_sequences_alone(pair: Pair) -> None:
    rows = [random_ids(length, seed) for seed, length in enumerate([60, 9, 40])]
    passes = [{0: 50, 1: 3}, {0: 1, 1: 1, 2: 30}, {0: 1, 1: 1, 2: 1}, {0: 7, 1: 3, 2: 8}]
    with in_fp64(pair.model) as model, in_fp64(pair.head) as head:
        paged = PagedHead(head, model, 3)
        hidden = [model.hidden_states(row[:, :-1]) for row in rows]
        found: list[list[Tensor]] = [[], [], []]
        for sizes in passes:
            spans = {i: slice(paged.lengths[i], paged.lengths[i] + size) for i, size in sizes.items()}
            pieces = {i: (rows[i][:, 1:][:, span], hidden[i][:, span]) for i, span in spans.items()}
            for i, out in paged.feed(pieces).items():
                found[i].append(out)
    for row, parts in zip(rows, found, strict=True):
        out = torch.cat(parts, dim=1)
        assert out.shape[1] == row.shape[1] - 1
        assert (out - expected_hidden(pair, row)).abs().max() < FP64_TOLERANCE


def test_chained_drafts_equal_the_reference_that_recomputes_all(pair: Pair) -> None:
    ids, num_drafts = random_ids(20), 5
    with in_fp64(pair.reference) as reference, in_fp64(pair.reference_head) as reference_head:
        hidden, next_ids = reference.model(ids[:, :-1]).last_hidden_state, ids[:, 1:]
        for _ in range(num_drafts):
            out = reference_head(reference.model.embed_tokens(next_ids), hidden)[:, -1:]
            hidden = torch.cat([hidden, out], dim=1)
            next_ids = torch.cat([next_ids, reference.lm_head(out).argmax(dim=-1)], dim=1)
        expected, expected_drafts = hidden[:, -num_drafts:], next_ids[0, -num_drafts:].tolist()
    with in_fp64(pair.model) as model, in_fp64(pair.head) as head:
        paged = PagedHead(head, model, 1)
        outs, drafts = [paged.feed({0: (ids[:, 1:], model.hidden_states(ids[:, :-1]))})[0][:, -1:]], []
        for _ in range(num_drafts):
            draft = model.logits(outs[-1]).argmax(dim=-1)
            drafts.append(draft.item())
            outs.append(paged.feed({0: (draft, outs[-1])})[0])
    assert drafts == expected_drafts
    assert (torch.cat(outs[:num_drafts], dim=1) - expected).abs().max() < FP64_TOLERANCE


def test_the_heads_parameters_are_as_many_as_published() -> None:
    """Qwen3-Next-80B-A3B: 79.674 B parameters, and 1.65 B of the head."""
    head = build_mtp(presets.find_preset("qwen3-next-80b-a3b").config, torch.bfloat16)
    assert all(parameter.is_meta for parameter in head.parameters())
    count = sum(parameter.numel() for parameter in head.parameters())
    assert round(count / 1e9, 2) == 1.65
    size = 2048
    attention = size * 16 * 256 * 3 + size * 2 * 256 * 2 + 2 * 256  # queries, gates and output; keys and values; norms
    experts = 513 * 3 * size * 512 + 512 * size + size  # 512 and a shared one, the router and the shared one's gate
    assert count == 2 * size * size + attention + experts + 5 * size


# Weights


@pytest.fixture
def saved(tmp_path: Path, pair: Pair) -> Path:
    """A checkpoint with a head, in one file."""
    save_pretrained(pair.model, tmp_path, mtp=pair.head)
    return tmp_path


def edit(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    state = {name: tensor.clone() for name, tensor in load_file(directory / WEIGHTS).items()}
    change(state)
    save_file(state, directory / WEIGHTS, metadata={"format": "pt"})


def assert_same(one: nn.Module, two: nn.Module) -> None:
    state = two.state_dict()
    assert one.state_dict().keys() == state.keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def fails(directory: Path, model: CausalLM, *parts: str) -> None:
    """Loading the head raises one line that holds each of `parts`, and the model still loads without it."""
    with pytest.raises(CodemillError) as caught:
        load_mtp(directory, model)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert_same(load_model(directory), model)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000])
def test_round_trip(tmp_path: Path, pair: Pair, max_shard_bytes: int) -> None:
    save_pretrained(pair.model, tmp_path, max_shard_bytes=max_shard_bytes, mtp=pair.head)
    model = load_model(tmp_path)
    assert_same(model, pair.model)
    head = load_mtp(tmp_path, model)
    assert head is not None
    assert_same(head, pair.head)
    assert not head.training
    assert not any(parameter.requires_grad for parameter in head.parameters())
    save_pretrained(model, tmp_path, mtp=head)  # over the files that both are mapped from
    again = load_mtp(tmp_path, load_model(tmp_path))
    assert again is not None
    assert_same(again, pair.head)


def test_names_on_disk(saved: Path, pair: Pair) -> None:
    names = [name for name in load_file(saved / WEIGHTS) if name.startswith("mtp.")]
    experts = [f"experts.{i}.{part}_proj" for i in range(8) for part in ("gate", "up", "down")]
    mlp = ["gate", *experts, *(f"shared_expert.{part}_proj" for part in ("gate", "up", "down")), "shared_expert_gate"]
    attention = [f"{part}_proj" for part in "qkvo"] + ["q_norm", "k_norm"]
    layer = ["input_layernorm", "post_attention_layernorm"]
    layer += [f"self_attn.{part}" for part in attention] + [f"mlp.{part}" for part in mlp]
    heads = ["fc", "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden", *(f"layers.0.{part}" for part in layer)]
    assert sorted(names) == sorted(f"mtp.{part}.weight" for part in heads)
    state = load_file(saved / WEIGHTS)
    assert torch.equal(state[EXPERT], pair.head.layers[0].mlp.experts.gate_up_proj[6, 24:])


def test_transformers_loads_a_model_that_is_saved_with_a_head(saved: Path, pair: Pair) -> None:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(saved)
    assert_same(loaded, pair.reference)


def test_a_checkpoint_without_a_head(tmp_path: Path, pair: Pair) -> None:
    save_pretrained(pair.model, tmp_path)
    assert load_mtp(tmp_path, load_model(tmp_path)) is None
    dense = make_ours(make_reference("qwen3"))
    save_pretrained(dense, tmp_path)
    assert load_mtp(tmp_path, dense) is None


def test_dtype_is_the_models_unless_given(saved: Path, pair: Pair) -> None:
    half = load_model(saved, dtype="bf16")
    for dtype, expected in ((None, torch.bfloat16), ("fp32", torch.float32)):
        head = load_mtp(saved, half, dtype, trainable=True)
        assert head is not None
        assert all(parameter.requires_grad and parameter.dtype == expected for parameter in head.parameters())
        assert torch.equal(head.fc.weight, pair.head.fc.weight.to(expected))


@pytest.mark.parametrize("name", [EXPERT, "mtp.fc.weight", "mtp.pre_fc_norm_hidden.weight", "mtp.norm.weight"])
def test_missing_tensor(saved: Path, pair: Pair, name: str) -> None:
    edit(saved, lambda state: state.pop(name))
    fails(saved, pair.model, WEIGHTS, f"1 tensor ({name}) is missing")


@pytest.mark.parametrize(("name", "shape"), [(EXPERT, [24, 32]), ("mtp.fc.weight", [32, 64])])
def test_wrong_shape_tells_both(saved: Path, pair: Pair, name: str, shape: list[int]) -> None:
    edit(saved, lambda state: state.update({name: torch.ones(3, 5)}))
    fails(saved, pair.model, WEIGHTS, name, "[3, 5]", f"config.json makes it {shape}")


@pytest.mark.parametrize("name", ["mtp.layers.1.input_layernorm.weight", "mtp.embed_tokens.weight"])
def test_tensors_that_would_change_what_the_head_computes(saved: Path, pair: Pair, name: str) -> None:
    edit(saved, lambda state: state.update({name: torch.ones(2)}))
    fails(saved, pair.model, WEIGHTS, f"1 tensor ({name}) is not part of a qwen3_next model")


# FP8: blocks of 16 x 16, the partial ones at the edges among them.


@pytest.fixture
def expected_fp8(saved: Path) -> dict[str, Tensor]:
    """`saved`, with the projections and experts of the head in block-FP8 -> their values, by name."""
    expected: dict[str, Tensor] = {}

    def quantize(state: dict[str, Tensor]) -> None:
        for name in [n for n in state if n.startswith("mtp.layers.0.") and n.endswith("_proj.weight")]:
            scale = torch.rand(*(-(-size // 16) for size in state[name].shape))
            weight = (state[name] * 8).to(torch.float8_e4m3fn)
            wide = scale.repeat_interleave(16, dim=0).repeat_interleave(16, dim=1)
            expected[name] = weight.float() * wide[: weight.shape[0], : weight.shape[1]]
            state[name], state[f"{name}_scale_inv"] = weight, scale

    edit(saved, quantize)
    path = saved / "config.json"
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": fp8}))
    return expected


def test_fp8_is_dequantised(saved: Path, expected_fp8: dict[str, Tensor], pair: Pair) -> None:
    model = load_model(saved)
    assert_same(model, pair.model)
    head = load_mtp(saved, model)
    assert head is not None
    save_pretrained(model, saved, mtp=head)
    state = load_file(saved / WEIGHTS)
    assert len(expected_fp8) == 4 + 3 * 8 + 3
    for name, weight in expected_fp8.items():
        assert torch.equal(state[name], weight), name
    assert torch.equal(head.fc.weight, pair.head.fc.weight)


@pytest.mark.usefixtures("expected_fp8")
def test_fp8_without_a_scale(saved: Path, pair: Pair) -> None:
    edit(saved, lambda state: state.pop(f"{EXPERT}_scale_inv"))
    fails(saved, pair.model, WEIGHTS, f"tensor {EXPERT} is FP8, but {EXPERT}_scale_inv is missing")


# Random weights


def test_random_weights(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    hybrid = ModelConfig.from_dict(pair.reference.config.to_dict())
    dense = ModelConfig.from_dict(make_reference("qwen3").config.to_dict())
    tiny = {
        name: presets.Preset(name, name, "org/none", config) for name, config in (("hybrid", hybrid), ("dense", dense))
    }
    monkeypatch.setattr(presets, "PRESETS", tiny)
    assert load_mtp("random:dense", load_model("random:dense")) is None
    model = load_model("random:hybrid", dtype="fp32")
    head, same, other = (load_mtp("random:hybrid", model, seed=seed) for seed in (3, 3, 4))
    assert head is not None
    assert same is not None
    assert other is not None
    assert_same(head, same)
    assert not torch.equal(head.fc.weight, other.fc.weight)
    assert abs(head.fc.weight.std() - hybrid.initializer_range) < 0.1 * hybrid.initializer_range
    assert not head.norm.weight.any()
    ids = random_ids(9)
    context = ForwardContext.build(model.config, model.dtype, ids[:, 1:])
    assert model.logits(head(ids[:, 1:], model.hidden_states(ids[:, :-1]), model, context)).isfinite().all()
