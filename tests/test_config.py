"""`config.json` in and out, and one line for each way in which it can be wrong."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codemill.config import ARCHITECTURES, ModelConfig, YarnConfig
from codemill.errors import CodemillError
from codemill.presets import PRESETS

SOURCE = "model/config.json"
DENSE: Mapping[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "rope_theta": 1e6,
}
MOE = {**DENSE, "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
NEXT = {
    **MOE,
    "model_type": "qwen3_next",
    "num_hidden_layers": 4,
    "shared_expert_intermediate_size": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}
FAMILIES = {"qwen3": DENSE, "qwen3_moe": MOE, "qwen3_next": NEXT}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def parse(base: Mapping[str, Any], **changes: Any) -> ModelConfig:
    return ModelConfig.from_dict({**base, **changes}, SOURCE)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_default_config_of_transformers_round_trips(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(family, dtype="bfloat16", eos_token_id=7)
    ours = ModelConfig.from_dict(theirs.to_dict())
    back = transformers.AutoConfig.for_model(**ours.to_dict())
    assert ModelConfig.from_dict(back.to_dict()) == ours
    expected = theirs.to_dict()
    for key, value in ours.to_dict().items():
        if key in expected and key not in ("architectures", "torch_dtype"):
            assert expected[key] == value, key
    assert back.rope_parameters == theirs.rope_parameters


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_round_trips_through_json(name: str) -> None:
    config = PRESETS[name].config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", PRESETS)
def test_transformers_reads_a_preset_as_the_same_shape(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = PRESETS[name].config
    theirs = transformers.AutoConfig.for_model(**config.to_dict())
    assert ModelConfig.from_dict(theirs.to_dict()) == config


def test_both_spellings_of_rope_mean_the_same() -> None:
    spread = {"rope_theta": 5e6, "partial_rotary_factor": 0.25, "rope_scaling": None}
    gathered = {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.25}
    bare = {key: value for key, value in NEXT.items() if key != "rope_theta"}
    assert parse(bare, **spread) == parse(bare, rope_parameters=gathered)


@pytest.mark.parametrize("type_key", ["type", "rope_type"])
def test_yarn_in_both_spellings(type_key: str) -> None:
    settings_ = {type_key: "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    old = parse(DENSE, rope_scaling=settings_)
    new = parse(DENSE, rope_theta=None, rope_parameters={**settings_, "rope_theta": 1e6})
    assert old == new
    assert old.rope.yarn == YarnConfig(4.0, 32768)
    assert parse(old.to_dict()) == old


def test_yarn_without_an_original_context_extends_the_configured_one() -> None:
    yarn = parse(DENSE, rope_scaling={"rope_type": "yarn", "factor": 2}).rope.yarn
    assert yarn is not None
    assert yarn.original_max_position_embeddings == 4096


def test_what_a_config_leaves_out_is_derived() -> None:
    optional = ("head_dim", "num_key_value_heads", "max_position_embeddings")
    config = parse({key: value for key, value in DENSE.items() if key not in optional}, head_dim=None)
    assert (config.head_dim, config.num_key_value_heads, config.max_position_embeddings) == (16, 4, 32768)


def test_norm_topk_prob_has_the_reference_default() -> None:
    for base, expected in ((MOE, False), (NEXT, True)):
        moe = parse({key: value for key, value in base.items() if key != "norm_topk_prob"}).moe
        assert moe is not None
        assert moe.norm_topk_prob is expected


def test_keys_that_change_no_logit_are_ignored() -> None:
    generation = {"do_sample": False, "temperature": 1.0, "top_k": 50, "max_length": 20, "num_beams": 1}
    empty = {"pruned_heads": {}, "future_key": None, "other_key": 0}
    assert parse(DENSE, **generation, **empty, mtp_num_hidden_layers=1) == parse(DENSE)
    assert parse(NEXT, attn_output_gate=True) == parse(NEXT)


def test_only_hybrid_models_rotate_a_part_of_each_head() -> None:
    assert parse(DENSE, partial_rotary_factor=0.5) == parse(DENSE)
    assert parse(NEXT, partial_rotary_factor=0.5).rope.partial_rotary_factor == 0.5


def test_hybrid_layer_types_follow_the_interval() -> None:
    assert parse(NEXT).layer_types == ("linear_attention",) * 3 + ("full_attention",)
    assert parse(NEXT, full_attention_interval=2).layer_types == ("linear_attention", "full_attention") * 2


def test_block_fp8_is_read_and_never_written() -> None:
    config = parse(DENSE, quantization_config={**FP8, "modules_to_not_convert": ["lm_head"]})
    assert config.fp8 is not None
    assert (config.fp8.block_size, config.fp8.modules_to_not_convert) == ((128, 128), ("lm_head",))
    assert "quantization_config" not in config.to_dict()


def test_eos_token_id_may_be_a_list() -> None:
    config = parse(DENSE, eos_token_id=[1, 2])
    assert config.eos_token_id == (1, 2)
    assert config.to_dict()["eos_token_id"] == [1, 2]


BAD: list[tuple[str, Mapping[str, Any], dict[str, Any], str]] = [
    ("unknown key", DENSE, {"attn_logit_softcap": 50.0}, "attn_logit_softcap"),
    ("unknown architecture", DENSE, {"model_type": "llama"}, "'llama'"),
    ("no architecture", DENSE, {"model_type": None}, "model_type"),
    ("architecture of a wrong type", DENSE, {"model_type": ["qwen3"]}, "model_type"),
    ("gptq", DENSE, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "'gptq'"),
    ("awq", DENSE, {"quantization_config": {"quant_method": "awq", "bits": 4}}, "'awq'"),
    ("mlx", DENSE, {"quantization": {"group_size": 64, "bits": 4}}, "take the unquantised checkpoint"),
    ("fp8 without blocks", DENSE, {"quantization_config": {"quant_method": "fp8"}}, "weight_block_size"),
    ("fp8 of another format", DENSE, {"quantization_config": {**FP8, "fmt": "e5m2"}}, "e5m2"),
    ("fp8 with a bad block", DENSE, {"quantization_config": {**FP8, "weight_block_size": [128]}}, "weight_block_size"),
    ("fp8 with a bad list", DENSE, {"quantization_config": {**FP8, "modules_to_not_convert": "lm_head"}},
     "modules_to_not_convert"),
    ("quantisation as text", DENSE, {"quantization_config": "fp8"}, "quantization_config"),
    ("sliding window", DENSE, {"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window"),
    ("sliding layers", DENSE, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("layer types of a wrong length", DENSE, {"layer_types": ["full_attention"]}, "layer_types"),
    ("linear layers in a dense model", DENSE, {"layer_types": ["linear_attention"] * 2}, "layer_types"),
    ("layer types as text", DENSE, {"layer_types": "full_attention"}, "layer_types"),
    ("other activation", DENSE, {"hidden_act": "gelu"}, "hidden_act"),
    ("size as text", DENSE, {"hidden_size": "64"}, "hidden_size"),
    ("size as a list", DENSE, {"num_hidden_layers": [2]}, "num_hidden_layers"),
    ("layers without end", DENSE, {"num_hidden_layers": 2**31}, "num_hidden_layers"),
    ("gated attention in a dense model", DENSE, {"attn_output_gate": True}, "attn_output_gate"),
    ("attention without its gate", NEXT, {"attn_output_gate": False}, "attn_output_gate"),
    ("fractional size", DENSE, {"intermediate_size": 12.5}, "intermediate_size"),
    ("size true", DENSE, {"vocab_size": True}, "vocab_size"),
    ("size zero", DENSE, {"num_attention_heads": 0}, "num_attention_heads"),
    ("negative size", DENSE, {"head_dim": -1}, "head_dim"),
    ("heads that do not divide", DENSE, {"num_key_value_heads": 3}, "num_key_value_heads"),
    ("odd rotary part", DENSE, {"head_dim": 7}, "head_dim"),
    ("flag as text", DENSE, {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ("eps as text", DENSE, {"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
    ("eps not a number", DENSE, {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ("eos as text", DENSE, {"eos_token_id": "</s>"}, "eos_token_id"),
    ("dtype as an object", DENSE, {"torch_dtype": {"weights": "bf16"}}, "torch_dtype"),
    ("theta as text", DENSE, {"rope_theta": "1e6"}, "rope_theta"),
    ("theta zero", DENSE, {"rope_theta": 0}, "rope_theta"),
    ("rope as a list", DENSE, {"rope_scaling": ["yarn"]}, "rope_scaling"),
    ("other rope", DENSE, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    ("yarn without factor", DENSE, {"rope_scaling": {"rope_type": "yarn"}}, "factor"),
    ("yarn with a bad factor", DENSE, {"rope_scaling": {"rope_type": "yarn", "factor": "4"}}, "factor"),
    ("yarn with factor zero", DENSE, {"rope_scaling": {"rope_type": "yarn", "factor": 0}}, "factor"),
    ("yarn with beta zero", DENSE, {"rope_scaling": {"rope_type": "yarn", "factor": 4, "beta_slow": 0}}, "beta_slow"),
    ("yarn with an unknown key", DENSE, {"rope_scaling": {"rope_type": "yarn", "factor": 4, "mscale": 1}}, "mscale"),
    ("rope with an unknown key", DENSE, {"rope_parameters": {"mrope_section": [1]}}, "mrope_section"),
    ("more experts per token than experts", MOE, {"num_experts_per_tok": 9}, "num_experts_per_tok"),
    ("experts as text", MOE, {"num_experts": "8"}, "num_experts"),
    ("sparse step zero", MOE, {"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ("layers as text", MOE, {"mlp_only_layers": "0"}, "mlp_only_layers"),
    ("shared expert in a model without", MOE, {"shared_expert_intermediate_size": 8}, "shared_expert"),
    ("interval zero", NEXT, {"full_attention_interval": 0}, "full_attention_interval"),
    ("value heads that do not divide", NEXT, {"linear_num_value_heads": 3}, "linear_num_value_heads"),
    ("rotary part too large", NEXT, {"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
]  # fmt: skip


@pytest.mark.parametrize(("base", "changes", "named"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_value_is_one_line_that_names_file_and_key(
    base: Mapping[str, Any], changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(CodemillError) as caught:
        parse(base, **changes)
    assert_one_line(caught.value, SOURCE, named)


REQUIRED = [
    *((DENSE, key) for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")),
    (DENSE, "intermediate_size"),
    *((MOE, key) for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size")),
    *((NEXT, key) for key in NEXT if key.startswith("linear_")),
]


@pytest.mark.parametrize(("base", "key"), REQUIRED)
@pytest.mark.parametrize("null", [True, False])
def test_a_missing_key_is_named(base: Mapping[str, Any], key: str, null: bool) -> None:
    raw = {**base, key: None} if null else {name: value for name, value in base.items() if name != key}
    with pytest.raises(CodemillError) as caught:
        ModelConfig.from_dict(raw, SOURCE)
    assert_one_line(caught.value, SOURCE, f"'{key}'")


@pytest.mark.parametrize(
    "content",
    [b"", b'{"model_type": "qwen3", "vocab', b"[1, 2]", b'"qwen3"', b"null", b"\xff\xfe\x00{", b"[" * 100_000],
)
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CodemillError) as caught:
        ModelConfig.load(tmp_path)
    assert_one_line(caught.value, str(tmp_path / "config.json"))


def test_a_directory_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CodemillError, match=r"config\.json does not exist"):
        ModelConfig.load(tmp_path)


def test_load_reads_what_to_dict_wrote(tmp_path: Path) -> None:
    config = parse(NEXT)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert ModelConfig.load(tmp_path) == config


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(family=st.sampled_from(list(ARCHITECTURES)), data=st.data())
def test_any_value_for_any_key_parses_or_is_one_line(family: str, data: st.DataObject) -> None:
    base = FAMILIES[family]
    key = data.draw(st.sampled_from([*NEXT, "rope_scaling", "rope_parameters", "quantization_config", "layer_types"]))
    value = data.draw(JSON_VALUES)
    try:
        parsed = ModelConfig.from_dict({**base, key: value}, SOURCE)
    except CodemillError as error:
        assert_one_line(error, SOURCE)
    else:
        assert parse(parsed.to_dict()) == parsed


def assert_one_line(error: CodemillError, *named: str) -> None:
    message = str(error)
    assert "\n" not in message
    for text in named:
        assert text in message
