"""The container: what the `gguf` package writes is read, and no damage to a file does more than raise one error."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from codemill.chat import Tokenizer
from codemill.errors import CodemillError
from codemill.gguf.container import GgufFile
from codemill.models import load_model, save_pretrained
from codemill.models.convert import convert
from models.gguf_files import write_gguf
from models.reference import make_ours, make_reference

INPUT_IDS = torch.tensor([[1, 2, 3]])


def test_values_of_every_type(tmp_path: Path) -> None:
    kinds = {
        "uint8": 200, "int8": -5, "uint16": 60_000, "int16": -30_000, "uint32": 4_000_000_000, "int32": -2_000_000_000,
        "float32": 0.5, "uint64": 1 << 63, "int64": -(1 << 62), "float64": 0.1, "bool": True, "string": "é\n🙂",
        "array": ["a", "", "ü" * 300],
    }  # fmt: skip
    arrays: dict[str, list[Any]] = {"x.ints": [1, -2, 3], "x.floats": [0.5, 2.0], "x.flags": [True, False]}
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen3")
    for name, value in kinds.items():
        getattr(writer, f"add_{name}")(f"x.{name}", value)
    for key, items in arrays.items():
        writer.add_array(key, items)
    writer.add_tensor("one", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("two", np.ones(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile.open(tmp_path / "x.gguf")
    for name, value in kinds.items():
        assert file.metadata[f"x.{name}"] == value
    for key, items in arrays.items():
        assert file.metadata[key] == items
    one, two = file.tensors["one"], file.tensors["two"]
    assert (one.shape, one.type.name, two.shape, two.type.name) == ((2, 3), "F32", (5,), "F16")
    data = (tmp_path / "x.gguf").read_bytes()
    assert np.frombuffer(data[one.begin : one.end], np.float32).tolist() == list(range(6))
    assert np.frombuffer(data[two.begin : two.end], np.float16).tolist() == [1] * 5


def test_version_2_and_nested_arrays(tmp_path: Path) -> None:
    nested = struct.pack("<IQ", 9, 2) + struct.pack("<IQBB", 0, 2, 7, 8) + struct.pack("<IQ", 8, 1)
    nested += struct.pack("<Q2s", 2, b"hi")
    entry = struct.pack("<Q1sI", 1, b"n", 9) + nested
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 2, 0, 1) + entry)
    assert GgufFile.open(tmp_path / "x.gguf").metadata == {"n": [[7, 8], ["hi"]]}


def test_another_alignment(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", {"a": 1}, {"w": np.ones(3, np.float32)})
    writer = gguf.GGUFWriter(tmp_path / "y.gguf", "qwen3")
    writer.add_custom_alignment(256)
    writer.add_tensor("w", np.ones(3, np.float32))
    writer.add_tensor("v", np.full(3, 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = GgufFile.open(tmp_path / "y.gguf").tensors["v"]
    assert tensor.begin % 256 == 0
    assert np.frombuffer((tmp_path / "y.gguf").read_bytes()[tensor.begin : tensor.end], np.float32).tolist() == [2] * 3


def header(version: int = 3, num_tensors: int = 0, entries: bytes = b"", num_entries: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_entries) + entries


def tensor_entry(name: bytes, dimensions: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    layout = f"<Q{len(name)}sI{len(dimensions)}QIQ"
    return struct.pack(layout, len(name), name, len(dimensions), *dimensions, kind, offset)


def string_entry(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack(f"<Q{len(key)}sI", len(key), key, kind) + value


HUGE = (1 << 64) - 1
DAMAGED = {
    "empty": (b"", "the file is empty"),
    "other": (b"PK\x03\x04" + bytes(40), r"no GGUF file \(it begins b'PK"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "version 1": (header(version=1), "GGUF version 1; versions 2 and 3"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many tensors": (header(num_tensors=HUGE), "cannot be in so small a file"),
    "long key": (header(entries=struct.pack("<Q", HUGE) + bytes(20), num_entries=1), "truncated or corrupt"),
    "long array": (
        header(entries=string_entry(b"k", 9, struct.pack("<IQ", 4, HUGE // 8)), num_entries=1),
        "truncated or corrupt: k goes beyond",
    ),
    "long strings": (
        header(entries=string_entry(b"k", 9, struct.pack("<IQ", 8, 1 << 40)), num_entries=1),
        "truncated or corrupt: k goes beyond",
    ),
    "deep": (header(entries=string_entry(b"k", 9, struct.pack("<IQ", 9, 1) * 50), num_entries=1), "nested more than"),
    "value type": (header(entries=string_entry(b"k", 77, bytes(8)), num_entries=1), "unknown value type 77"),
    "key": (header(entries=string_entry(b"k\n", 0, b"1"), num_entries=1), r"a metadata key is 'k\\n'"),
    "twice": (header(entries=string_entry(b"k", 0, b"1") * 2, num_entries=2), "the key 'k' occurs twice"),
    "text": (header(entries=string_entry(b"k", 8, struct.pack("<Q2s", 2, b"\xff\xfe")), num_entries=1), "not UTF-8"),
    "tensor type": (header(num_tensors=1) + tensor_entry(b"w", (256,), 16), "tensor w has type IQ2_XXS; only F32, F16"),
    "new type": (header(num_tensors=1) + tensor_entry(b"w", (256,), 99), "tensor w has type number 99"),
    "part of a block of 256": (header(num_tensors=1) + tensor_entry(b"w", (288,), 13), r"type Q5_K has shape \[288\]"),
    "cut in a block": (
        header(num_tensors=1) + tensor_entry(b"w", (256, 4), 12) + bytes(32 + 4 * 144 - 9),
        "is truncated: tensor w ends",
    ),
    "half a block": (header(num_tensors=1) + tensor_entry(b"w", (40,), 8), r"type Q8_0 has shape \[40\]"),
    "dimensions": (header(num_tensors=1) + tensor_entry(b"w", (1,) * 9, 0), "has 9 dimensions"),
    "large": (header(num_tensors=1) + tensor_entry(b"w", (1 << 62, 1 << 62), 0), "is truncated: tensor w ends"),
    "offset": (header(num_tensors=1) + tensor_entry(b"w", (1,), 0, 7) + bytes(99), "offset 7, no multiple of 32"),
    "overlap": (
        header(num_tensors=2) + tensor_entry(b"v", (32,), 0) + tensor_entry(b"w", (32,), 0, 32) + bytes(999),
        "tensor w overlaps",
    ),
    "alignment": (
        header(entries=string_entry(b"general.alignment", 4, struct.pack("<I", 33)), num_entries=1),
        "general.alignment = 33",
    ),
}


@pytest.mark.parametrize("name", list(DAMAGED))
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    data, message = DAMAGED[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(CodemillError, match=message) as caught:
        GgufFile.open(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole model with a tokenizer, and most of its bytes in the header."""
    folder = tmp_path_factory.mktemp("small")
    sizes = {"vocab_size": 300, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    save_pretrained(make_ours(make_reference("qwen3", intermediate_size=8, num_hidden_layers=1, **sizes)), folder)
    alphabet = gguf_alphabet()
    merges = ["Ġ Ġ", "i n"]
    added = [{"id": 258, "content": "<|im_end|>", "special": True}, {"id": 259, "content": "<think>", "special": False}]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    from codemill.gguf import tokenizer

    vocabulary = {token: i for i, token in enumerate([*alphabet, "ĠĠ", "in"])}
    raw = tokenizer._tokenizer_json(vocabulary, merges, [entry | flags for entry in added])
    (folder / "tokenizer.json").write_bytes(tokenizer.encode_json(raw))
    convert(folder, folder / "model.gguf")
    return (folder / "model.gguf").read_bytes()


def gguf_alphabet() -> list[str]:
    from codemill.chat.tokenizer import BYTE_OF

    return sorted(BYTE_OF, key=BYTE_OF.__getitem__)


def use(path: Path) -> None:
    """All that a user would do with it."""
    load_model(path)(INPUT_IDS)
    tokenizer = Tokenizer.load(path)
    tokenizer.decode(tokenizer.encode("x = in  <|im_end|>", allowed_special="all"))


def damaged(data: bytes, count: int) -> Iterator[bytes]:
    generator = random.Random(5)
    end = len(data)
    for _ in range(count):
        yield data[: generator.randrange(end)]
        changed = bytearray(data)
        for _ in range(generator.choice((1, 1, 1, 4))):
            place = generator.randrange(end)
            changed[place] = generator.choice((changed[place] ^ (1 << generator.randrange(8)), 0, 255))
        yield bytes(changed)


def test_nothing_but_one_line_comes_out_of_damaged_files(tmp_path: Path, small_file: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(small_file)
    use(path)
    messages = []
    for data in damaged(small_file, 400):
        path.write_bytes(data)
        try:
            use(path)
        except CodemillError as error:
            messages.append(str(error))
    assert len(messages) > 400  # every truncation, and some of the changes
    assert all(str(path) in message and "\n" not in message for message in messages)
