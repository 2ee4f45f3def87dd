"""Tokenizer training: layout of the vocabulary, Qwen's text rules, files that transformers loads."""

import json
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from codemill.data.bpe import CONTROL_TOKENS, MARKUP_TOKENS, save_tokenizer, train_tokenizer
from codemill.data.corpus import Module
from codemill.errors import CodemillError, UsageError


def test_added_tokens_close_the_vocabulary_in_qwens_order(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 600
    assert [tokenizer.id_to_token(i) for i in range(574, 600)] == [*CONTROL_TOKENS, *MARKUP_TOKENS]
    specials = [token.special for _, token in sorted(tokenizer.get_added_tokens_decoder().items())]
    assert specials == [True] * 14 + [False] * 12


def test_added_tokens_and_text_rules_are_qwens(shared_data: Path, tokenizer: Tokenizer) -> None:
    folder = shared_data / "tokenizer_qwen"
    qwen = json.loads((folder / "added_tokens_qwen3.json").read_text())
    assert [*CONTROL_TOKENS, *MARKUP_TOKENS] == sorted(qwen, key=qwen.get)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "def f(x):\n    return x1234  # it's ünïcode\r\n\n\n\tprint( 'DON'T' )   \n"
    assert tokenizer.pre_tokenizer.pre_tokenize_str(text) == reference.pre_tokenizer.pre_tokenize_str(text)
    assert tokenizer.normalizer.normalize_str("e\u0301") == reference.normalizer.normalize_str("e\u0301") == "\u00e9"


@given(text=st.text())
def test_any_text_round_trips_up_to_nfc(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == normalize("NFC", text)


def test_training_is_deterministic(modules: list[Module], tokenizer: Tokenizer) -> None:
    again = train_tokenizer((module.text for module in modules), 600)
    assert again.to_str() == tokenizer.to_str()


@pytest.mark.parametrize("vocab_size", [0, 281])
def test_too_small_a_vocabulary_is_refused(vocab_size: int) -> None:
    with pytest.raises(UsageError, match="282"):
        train_tokenizer(["text"], vocab_size)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(CodemillError, match="give more text"):
        train_tokenizer(["short"], 4096)


@pytest.mark.parametrize("model_type", [None, "qwen3"])
def test_transformers_loads_it_to_equal_ids(
    tmp_path: Path, tokenizer: Tokenizer, modules: list[Module], model_type: str | None
) -> None:
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tokenizer, tmp_path, model_max_length=512)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [modules[0].text[:2000], "<|im_start|>user\nhi e\u0301 12<think></tool_call><|im_end|>\n", ""]
    assert [loaded.encode(text) for text in texts] == [tokenizer.encode(text).ids for text in texts]
    assert (loaded.eos_token, loaded.pad_token, loaded.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    assert (len(loaded), loaded.model_max_length) == (600, 512)
    assert loaded.decode(loaded.encode("<|im_end|><think>"), skip_special_tokens=True) == "<think>"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CodemillError, match=r"cannot write the tokenizer to .*file"):
        save_tokenizer(tokenizer, tmp_path / "file")
