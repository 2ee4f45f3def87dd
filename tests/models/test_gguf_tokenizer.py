"""Tokenizers in GGUF metadata: the same ids for the same text, in and out."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from codemill.chat import Tokenizer
from codemill.chat.tokenizer_files import TokenizerFiles
from codemill.errors import CodemillError
from codemill.gguf.container import GgufFile
from codemill.gguf.tokenizer import CONTROL, USER_DEFINED, TokenizerParts, read_tokenizer, write_tokenizer
from codemill.gguf.writer import write_header
from codemill.spec import EMBEDDED

ROWS = 151_936
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
MESSAGES = [{"role": "user", "content": "naïve <|im_end|> text"}]


@pytest.fixture(scope="module")
def real(shared_data: Path) -> Tokenizer:
    return Tokenizer.load(shared_data / "tokenizer_qwen")


@pytest.fixture(scope="module")
def real_path(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real tokenizer in a GGUF file without tensors."""
    blob = json.loads((shared_data / "tokenizer_qwen" / "tokenizer.json").read_bytes())
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    parts = TokenizerParts(blob, config, {"default": TEMPLATE, "tool_use": TEMPLATE + "tools"})
    path = tmp_path_factory.mktemp("gguf") / "real.gguf"
    with path.open("wb") as file:
        write_header(file, {"general.architecture": "qwen3"} | write_tokenizer(parts, ROWS, "real"), [])
    return path


def texts(shared_data: Path) -> list[str]:
    inputs = sorted((shared_data / "tokenizer_qwen" / "vectors").rglob("*.inp"))
    found = [text for path in inputs for text in path.read_text("utf-8").split("\n__ggml_vocab_test__\n")]
    found += [path.read_text("utf-8") for path in sorted(Path(json.__file__).parent.parent.glob("*.py"))[:25]]
    generator = random.Random(3)
    ranges = [(32, 127), (0xA0, 0x250), (0x370, 0x600), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0x300, 0x36F), (0, 32)]
    for _ in range(2000):
        points = [generator.randint(*generator.choice(ranges)) for _ in range(generator.randrange(30))]
        found.append("".join(map(chr, points)))
    return found


def test_the_real_tokenizer_comes_back(shared_data: Path, real: Tokenizer, real_path: Path) -> None:
    back = Tokenizer.load(real_path)
    for text in texts(shared_data):
        ids = back.encode(text)
        assert ids == real.encode(text)
        assert back.decode(ids) == real.decode(ids)
        assert back.encode(text, allowed_special="all") == real.encode(text, allowed_special="all")
    assert back.control_tokens == real.control_tokens
    assert back.special_ids == real.special_ids
    assert [back.id_to_token(i) for i in range(ROWS)] == [real.id_to_token(i) for i in range(ROWS)]
    assert back.eos_token_ids == real.eos_token_ids
    assert back.pad_token_id == real.pad_token_id
    assert back.vocab_size == real.vocab_size


def test_templates_come_along(real_path: Path) -> None:
    back = Tokenizer.load(real_path)
    assert back.render(MESSAGES) == "<|im_start|>user\nnaïve <|im_end|> text<|im_end|>\n"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    assert back.render(MESSAGES, tools).endswith("tools")


def test_reading_takes_less_than_a_second(real_path: Path) -> None:
    start = time.process_time()
    GgufFile.open(real_path)
    assert time.process_time() - start < 1


def test_token_types(real_path: Path) -> None:
    metadata = GgufFile.open(real_path).metadata
    types = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True))
    assert len(types) == ROWS
    assert (types["<|im_end|>"], types["<|fim_prefix|>"], types["<think>"]) == (CONTROL, CONTROL, USER_DEFINED)
    assert types["[PAD151900]"] == 5
    assert metadata["tokenizer.ggml.eos_token_id"] == 151_645


def changed(path: Path, **changes: Any) -> dict[str, Any]:
    metadata = dict(GgufFile.open(path).metadata)
    for key, value in changes.items():
        metadata[f"tokenizer.ggml.{key}"] = value(metadata[f"tokenizer.ggml.{key}"]) if callable(value) else value
    return metadata


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, r"tokenizer.ggml.model = 'llama' is not supported \(only 'gpt2'\)"),
        ({"pre": "llama-bpe"}, r"tokenizer.ggml.pre = 'llama-bpe' is not supported \(only 'qwen2'\)"),
        ({"tokens": lambda tokens: ["▁the", *tokens[1:]]}, "no byte-level vocabulary"),
        ({"tokens": lambda tokens: [tokens[1], *tokens[1:]]}, "a token occurs twice"),
        ({"tokens": lambda tokens: tokens[:-1]}, "151935 tokens, but 151936 entries"),
        ({"tokens": 5}, "must be an array of str"),
        ({"eos_token_id": 200_000}, "eos_token_id = 200000, but there are 151936 tokens"),
    ],
)
def test_what_is_not_ours_is_refused(real_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CodemillError, match=message):
        read_tokenizer(real_path, changed(real_path, **changes))


@pytest.mark.parametrize("merge", ["Ġ no-such-token", "a b c", "ab", "Ġ Ǘ", ""])
def test_merges_must_be_of_tokens(tmp_path: Path, merge: str) -> None:
    raw = json.loads((EMBEDDED / "tokenizer.json").read_bytes())
    metadata = write_tokenizer(TokenizerParts(raw), 4096, "embedded")
    metadata["tokenizer.ggml.merges"].append(merge)
    with (tmp_path / "x.gguf").open("wb") as file:
        write_header(file, metadata, [])
    with pytest.raises(CodemillError, match=r"x\.gguf: corrupt tokenizer file"):
        Tokenizer.load(tmp_path / "x.gguf")


def test_what_gguf_cannot_say_is_refused(shared_data: Path) -> None:
    raw = json.loads((shared_data / "tokenizer_qwen" / "tokenizer.json").read_bytes())
    with pytest.raises(CodemillError, match="mine: the tokenizer has 151669 tokens, the model only 1000 rows"):
        write_tokenizer(TokenizerParts(raw), 1000, "mine")
    with pytest.raises(CodemillError, match="does not normalise to NFC"):
        write_tokenizer(TokenizerParts(raw | {"normalizer": None}), ROWS, "mine")
    with pytest.raises(CodemillError, match="not byte-level BPE with Qwen's pattern"):
        write_tokenizer(TokenizerParts(raw | {"pre_tokenizer": {"type": "ByteLevel"}}), ROWS, "mine")


def test_saved_as_files_it_is_the_same_again(real: Tokenizer, real_path: Path, tmp_path: Path) -> None:
    Tokenizer.load(real_path).save(tmp_path)
    again = Tokenizer.load(tmp_path)
    text = "def f(x):\n    return 'naïve'  # <|im_end|> 你好"
    assert again.encode(text) == real.encode(text)
    assert again.render(MESSAGES) == Tokenizer.load(real_path).render(MESSAGES)
    assert isinstance(again._files, TokenizerFiles)
