import json
import pickle
import shutil
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat.chat_checks import one_line
from codemill.chat import Tokenizer
from codemill.chat.tokenizer import PIECE, in_pieces, replace_surrogates
from codemill.errors import CodemillError, UsageError

CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</think>", "<|fim_middle|>"]
TEXTS = st.text() | st.lists(st.sampled_from([*CONTROL, "<|", " x\r\n", "é", "e\u0301", "\U0001f600"])).map("".join)


EMBEDDED = Tokenizer.load()


def vector_folders(folder: Path) -> list[Path]:
    return sorted((folder / "vectors").iterdir())


def test_the_47_vectors_of_every_folder(qwen: Tokenizer, qwen_folder: Path) -> None:
    folders = vector_folders(qwen_folder)
    assert len(folders) == 3
    for folder in folders:
        source, expected = next(folder.glob("*.inp")), next(folder.glob("*.out"))
        texts = source.open(encoding="utf-8", newline="").read().split("\n__ggml_vocab_test__\n")
        lines = expected.read_text("utf-8").split("\n")
        assert len(texts) == 47
        for text, line in zip(texts, lines, strict=False):
            ids = [int(token) for token in line.split()]
            assert qwen.encode(text) == ids
            assert qwen.decode(ids) == unicodedata.normalize("NFC", text)


def test_the_facts_of_the_qwen_vocabulary(qwen: Tokenizer) -> None:
    assert qwen.vocab_size == 151_669
    assert qwen.eos_token_ids == (151_645, 151_643)
    assert qwen.pad_token_id == 151_643
    assert qwen.fim_stop_ids == (151659, 151661, 151662, 151663, 151664, 151643, 151645)
    assert qwen.token_to_id("<tool_call>") == 151_657
    assert qwen.id_to_token(151_668) == "</think>"
    assert qwen.token_to_id("no such token") is None
    assert qwen.id_to_token(151_900) is None
    assert qwen.token_bytes(151_900) == b""
    assert qwen.token_bytes(-1) == b""
    assert qwen.special_ids == frozenset(range(151_643, 151_657))


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_round_trip_and_agreement_with_transformers(qwen: Tokenizer, qwen_reference, text: str) -> None:
    normal = unicodedata.normalize("NFC", text)
    plain, allowed = qwen.encode(text), qwen.encode(text, "all")
    assert allowed == qwen_reference.encode(text, add_special_tokens=False)
    assert allowed == qwen.encode(text, frozenset(qwen.control_tokens))
    assert not set(plain) & set(qwen.control_tokens.values())
    assert qwen.decode(plain) == normal
    assert qwen.decode(allowed) == qwen_reference.decode(allowed)
    skipped = qwen.decode(allowed, skip_special_tokens=True)
    assert skipped == qwen_reference.decode(allowed, skip_special_tokens=True)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 151_935)))
def test_decoding_any_ids_equals_transformers(qwen: Tokenizer, qwen_reference, ids: list[int]) -> None:
    known = [i for i in ids if i < qwen.vocab_size]
    assert qwen.decode(ids) == qwen_reference.decode(known)


@settings(deadline=None)
@given(st.text())
def test_round_trip_with_a_small_vocabulary(small: Tokenizer, text: str) -> None:
    assert small.decode(small.encode(text)) == unicodedata.normalize("NFC", text)


@pytest.fixture(scope="module")
def qwen_reference(qwen_folder: Path):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(qwen_folder / "tokenizer.json"))


def test_control_tokens_in_text_are_text_unless_allowed(small: Tokenizer) -> None:
    end = small.control_tokens["<|im_end|>"]
    text = "a<|im_end|>b<tool_call>"
    assert end not in small.encode(text)
    assert small.encode(text, {"<|im_end|>"})[1] == end
    assert small.control_tokens["<tool_call>"] not in small.encode(text, {"<|im_end|>"})
    assert small.decode(small.encode(text, {"<|im_end|>"})) == text
    with pytest.raises(UsageError, match="<nope>"):
        small.encode(text, {"<nope>"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\ud800b", "a\ufffdb"),
        ("\udc00", "\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ud800\ud800x", "\ufffd\ufffdx"),
    ],
)
def test_lone_surrogates_become_replacement_characters(small: Tokenizer, text: str, expected: str) -> None:
    assert replace_surrogates(text) == expected
    assert small.decode(small.encode(text)) == expected
    assert small.decode(small.encode(text, "all")) == expected


def test_token_bytes_of_every_byte(small: Tokenizer) -> None:
    text = unicodedata.normalize(
        "NFC", "".join(map(chr, [*range(128), *range(0x180, 0x800), *range(0x1F600, 0x1F640)]))
    )
    assert b"".join(small.token_bytes(i) for i in small.encode(text)) == text.encode()


def test_encoding_is_as_fast_as_the_library(qwen: Tokenizer, qwen_folder: Path) -> None:
    sources = sorted(Path(json.__file__).parents[1].glob("*.py"))
    text = "".join(path.read_text("utf-8", "replace") for path in sources)[:400_000]
    library = tokenizers.Tokenizer.from_file(str(qwen_folder / "tokenizer.json"))
    library.encode(text), qwen.encode(text)
    theirs, ours = elapsed(lambda: library.encode(text)), elapsed(lambda: qwen.encode(text))
    assert ours < 1.3 * theirs + 0.1


def elapsed(work) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def test_save_and_load_again(small: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    small.save(tmp_path)
    again, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.encode("def add<|im_end|>", "all") == small.encode("def add<|im_end|>", "all")
    assert theirs.encode("def add<|im_end|>") == small.encode("def add<|im_end|>", "all")
    assert theirs.eos_token_id == small.eos_token_ids[0]
    assert theirs.pad_token_id == small.pad_token_id


def test_a_template_survives_saving(small_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_bytes((small_folder / "tokenizer.json").read_bytes())
    (source / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}{{ eos_token }}")
    Tokenizer.load(source).save(tmp_path / "copy")
    copy = Tokenizer.load(tmp_path / "copy")
    assert copy.eos_token_ids[0] == copy.control_tokens["<|endoftext|>"]
    assert copy.render([{"role": "user", "content": "hi"}]) == "hi<|endoftext|>"
    assert copy.encode_chat([{"role": "user", "content": "hi"}])[-1] == copy.control_tokens["<|endoftext|>"]


def test_named_templates(small_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((small_folder / "tokenizer.json").read_bytes())
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    tokenizer, message = Tokenizer.load(tmp_path), [{"role": "user", "content": "hi"}]
    assert tokenizer.render(message) == "plain"
    assert tokenizer.render(message, tools=[{"name": "f"}]) == "with tools"


def test_added_tokens_that_tokenizer_json_lacks(small_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((small_folder / "tokenizer.json").read_bytes())
    size = Tokenizer.load(small_folder).vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|extra|>": size, "<think>": size - 2}))
    assert Tokenizer.load(tmp_path).control_tokens["<|extra|>"] == size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|extra|>": size + 5}))
    with pytest.raises(CodemillError, match="extra") as caught:
        Tokenizer.load(tmp_path)
    one_line(caught)


@pytest.mark.parametrize("content", [b"", b'{"version": "1.0", ', b"\xff\xfe", b"{}", b"[]"])
def test_a_corrupt_tokenizer_is_one_line_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CodemillError, match=r"tokenizer\.json") as caught:
        Tokenizer.load(tmp_path)
    one_line(caught)


@pytest.mark.parametrize("content", ["{", "[1]", '{"chat_template": [{"name": "x"}]}'])
def test_a_corrupt_configuration_names_its_file(small_folder: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes((small_folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(CodemillError, match=r"tokenizer_config\.json") as caught:
        Tokenizer.load(tmp_path)
    one_line(caught)


def test_specs_that_mean_nothing(tmp_path: Path) -> None:
    for spec in (tmp_path, tmp_path / "absent", "no-such-model", str(tmp_path / "model.gguf")):
        with pytest.raises(CodemillError) as caught:
            Tokenizer.load(spec)
        one_line(caught)


def test_only_byte_level_vocabularies(tmp_path: Path) -> None:
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CodemillError, match="byte-level"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_random_models_share_the_embedded_tokenizer(small_folder: Path, tmp_path: Path, monkeypatch) -> None:
    installed = shutil.copytree(small_folder, tmp_path / "installed")
    (installed / "config.json").write_text("{}")
    monkeypatch.setattr("codemill.spec.EMBEDDED", installed)
    assert Tokenizer.load("random:qwen3-0.6b").vocab_size == Tokenizer.load(None).vocab_size
    monkeypatch.setattr("codemill.spec.EMBEDDED", tmp_path)
    with pytest.raises(CodemillError, match="embedded model"):
        Tokenizer.load()


def test_a_hub_id_is_fetched(small_folder: Path, monkeypatch) -> None:
    asked = []

    def fetch(repo_id: str, allow_patterns: Sequence[str]) -> Path:
        asked.append((repo_id, "tokenizer.json" in allow_patterns))
        return small_folder

    monkeypatch.setattr("codemill.spec.fetch", fetch)
    assert Tokenizer.load("some-org/Some.Model-1").vocab_size > 256
    assert asked == [("some-org/Some.Model-1", True)]


@pytest.mark.parametrize("name", ["embedded", "qwen"])
@given(text=st.text(alphabet="ab 'st\n\r\t1é\u0301世.", max_size=200), size=st.integers(1, 20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_text_in_pieces_has_the_ids_of_the_whole(
    request: pytest.FixtureRequest, name: str, text: str, size: int
) -> None:
    tokenizer = EMBEDDED if name == "embedded" else request.getfixturevalue("qwen")
    pieces = list(in_pieces(text, size))
    assert "".join(pieces) == text
    assert [each for piece in pieces for each in tokenizer.encode(piece)] == tokenizer.encode(text)


def test_long_texts_are_encoded_in_pieces() -> None:
    pieces = list(in_pieces("some words\n" * 100_000, PIECE))
    assert len(pieces) == 5
    assert max(map(len, pieces)) < PIECE + 20


def test_pieces_are_the_rendered_text_with_its_control_tokens_apart(small: Tokenizer) -> None:
    messages = [{"role": "user", "content": "What is <|im_end|>?"}, {"role": "assistant", "content": "An end."}]
    pieces = small.render_pieces(messages, add_generation_prompt=False)
    assert pieces == [
        ("", "<|im_start|>"),
        ("user\nWhat is <|im_end|>?", "<|im_end|>"),
        ("\n", "<|im_start|>"),
        ("assistant\nAn end.", "<|im_end|>"),
        ("\n", None),
    ]
    assert "".join(text + (token or "") for text, token in pieces) == small.render(messages, None, False)


def test_a_copy_for_another_process_is_the_same(small: Tokenizer, qwen: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(small))
    assert copy.fingerprint == small.fingerprint != qwen.fingerprint
    messages = [{"role": "user", "content": "def add(a, b):"}]
    assert copy.encode_chat(messages) == small.encode_chat(messages)
