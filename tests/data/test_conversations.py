"""Files of conversations as documents: policies, counts, and errors that name file and line."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from codemill.chat import Tokenizer
from codemill.data.conversations import ConversationData, load_documents, load_pairs, load_prompts
from codemill.data.overlong import FittedDocuments
from codemill.errors import CodemillError, UsageError
from data.conversations import CHAT, TOOLS, learned, says, user, write_lines

SHORT = {"messages": [user("a"), says("b")]}
LONG = {"messages": [user("Count."), says("1 2 3 4 5 6 7 8 9 10 " * 9)]}


def settings(path: Path, **more: Any) -> ConversationData:
    return ConversationData((str(path),), cache=str(path.parent / "cache"), **more)


def load(path: Path, tokenizer: Tokenizer, **more: Any) -> FittedDocuments:
    return load_documents([path], tokenizer, settings(path, **more))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    records = [CHAT, LONG, {"prompt": "def f(x):", "completion": " pass"}, {"text": "x = 1\n" * 40}, TOOLS]
    return write_lines(tmp_path / "mixed.jsonl", records)


def test_formats_side_by_side(mixed: Path, embedded: Tokenizer) -> None:
    documents = load(mixed, embedded)
    assert [documents.where(i) for i in range(5)] == [f"{mixed}:{i}" for i in range(1, 6)]
    assert learned(embedded, documents[2]) == [" pass<|endoftext|>"]
    assert learned(embedded, documents[3]) == ["x = 1\n" * 40 + "<|endoftext|>"]
    assert documents.num_learned == sum(int((d.weights[1:] > 0).sum()) for d in documents)


def test_overlong_conversations_are_an_error_but_texts_are_split(mixed: Path, embedded: Tokenizer) -> None:
    with pytest.raises(CodemillError, match=rf"{mixed}:2: \d+ tokens, but the context is 64: raise it, or choose"):
        load(mixed, embedded, context=64)
    write_lines(mixed, [{"text": "x = 1\n" * 40}])
    documents = load(mixed, embedded, context=64)
    assert len(documents) > 1
    assert embedded.decode([i for d in documents for i in d.ids.tolist()]) == "x = 1\n" * 40 + "<|endoftext|>"


def test_overlong_conversations_dropped(mixed: Path, embedded: Tokenizer) -> None:
    documents = load(mixed, embedded, context=64, overlong="drop")
    assert {documents.where(i) for i in range(len(documents))} == {f"{mixed}:1", f"{mixed}:3"}
    whole = load(mixed, embedded)
    assert documents.counts.overlong == documents.counts.dropped == 3
    assert documents.counts.lost_tokens == sum(len(whole[i]) for i in (1, 3, 4))
    assert documents.num_learned == sum(int((d.weights[1:] > 0).sum()) for d in documents)


def test_overlong_conversations_truncated_and_split(mixed: Path, embedded: Tokenizer) -> None:
    whole = load(mixed, embedded)[1]
    truncated = load(mixed, embedded, context=64, overlong="truncate")
    assert truncated[1].ids.tolist() == whole.ids[:64].tolist()
    assert truncated[1].weights.tolist() == whole.weights[:64].tolist()
    pieces = load(mixed, embedded, context=64, overlong="split")
    found = [i for i in range(len(pieces)) if pieces.where(i) == f"{mixed}:2"]
    assert [i for p in found for i in pieces[p].ids.tolist()] == whole.ids.tolist()
    assert max(pieces.lengths) <= 64
    assert pieces.num_learned == sum(int((d.weights[1:] > 0).sum()) for d in pieces)
    assert truncated.num_learned == sum(int((d.weights[1:] > 0).sum()) for d in truncated)


def test_beginnings_with_nothing_to_learn_are_dropped(tmp_path: Path, embedded: Tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": [user("why " * 90), says("Because.")]}, SHORT])
    truncated = load(path, embedded, context=32, overlong="truncate")
    assert (len(truncated), truncated.counts.overlong, truncated.counts.dropped) == (1, 1, 1)
    split = load(path, embedded, context=32, overlong="split")
    assert all(learned(embedded, document) for document in split)
    assert "".join(text for d in split for text in learned(embedded, d)) == "Because.<|im_end|>b<|im_end|>"


def test_conversations_with_nothing_to_learn(tmp_path: Path, embedded: Tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", [SHORT, {"messages": [user("a")]}, {"messages": [user("b")]}])
    with pytest.raises(CodemillError, match=rf"{path}:2: nothing to learn from: no message .* \(and 1 more\)"):
        load(path, embedded)
    documents = load(path, embedded, on_empty="skip")
    assert (len(documents), len(documents.documents.empty), documents.documents.records) == (1, 2, 3)
    write_lines(path, [{"messages": [user("a")]}])
    with pytest.raises(CodemillError, match="no records to learn from"):
        load(path, embedded, on_empty="skip")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{", "not JSON"),
        (b"[1]", "a record must be a JSON object, found list"),
        (b'{"text": "\xff"}', "no UTF-8 text"),
        (b"[" * 100_000, "not JSON"),
        (b'{"messages": [{"role": "robot", "content": "a"}]}', "message 0: unknown role 'robot'"),
        (b'{"messages": [{"role": "tool", "content": "a"}]}', "message 0: a tool result without a call"),
        (b'{"text": "a", "domain": 3}', "domain must be text"),
    ],
)
def test_errors_name_file_and_line(line: bytes, fault: str, tmp_path: Path, embedded: Tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", [SHORT])
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n")
    for file in (path, tmp_path / "b.jsonl.gz"):
        if file != path:
            file.write_bytes(gzip.compress(path.read_bytes()))
        with pytest.raises(CodemillError) as caught:
            load(file, embedded)
        assert str(caught.value).startswith(f"{file}:3: {fault}")
        assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_decompressed(tmp_path: Path, embedded: Tokenizer) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 9)[:-12])
    with pytest.raises(CodemillError, match=rf"{path} cannot be decompressed"):
        load(path, embedded)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables(kind: str, tmp_path: Path, embedded: Tokenizer) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table, path = pyarrow.Table.from_pylist([CHAT, SHORT]), tmp_path / f"a.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    documents = load(path, embedded)
    lines = load(write_lines(tmp_path / "a.jsonl", [CHAT, SHORT]), embedded)
    assert [d.ids.tolist() for d in documents] == [d.ids.tolist() for d in lines]
    assert documents.where(1) == f"{path}:2"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(CodemillError, match=f"{path}: not a readable {kind} file"):
        load(path, embedded)


def test_pairs_share_their_prompt(tmp_path: Path, embedded: Tokenizer) -> None:
    records = [
        {"prompt": [user(f"q{i}")], "chosen": [says("good " * i)], "rejected": [says("bad")], "domain": "web"}
        for i in range(1, 20)
    ]
    path = write_lines(tmp_path / "a.jsonl", records)
    pairs = load_pairs([path], embedded, settings(path))
    assert len(pairs) == 19
    for i, pair in enumerate(pairs):
        prompt = embedded.encode_chat([user(f"q{i + 1}")], add_generation_prompt=True)
        for document, answer in ((pair.chosen, "good " * (i + 1)), (pair.rejected, "bad")):
            assert document.ids[: len(prompt)].tolist() == prompt
            assert learned(embedded, document) == [f"{answer}<|im_end|>"]
            assert not document.weights[: len(prompt)].any()
    assert pairs.documents.domain(0) == "web"
    fitted = load_pairs([path], embedded, settings(path, context=30, overlong="drop"))
    assert 0 < len(fitted) < 19
    assert len(fitted.documents) == 2 * len(fitted)
    assert all(embedded.decode(pair.rejected.ids).endswith("bad<|im_end|>\n") for pair in fitted)
    with pytest.raises(UsageError, match="cannot be split"):
        load_pairs([path], embedded, settings(path, overlong="split"))


def test_prompts_for_distillation(tmp_path: Path, embedded: Tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{**CHAT, "domain": "web"}, {"prompt": "def f"}, {"prompt": [user("a")]}])
    prompts = load_prompts([path], embedded, settings(path))
    assert [prompt.domain for prompt in prompts] == ["web", "", ""]
    expected = [
        embedded.encode_chat(CHAT["messages"][:-1], add_generation_prompt=True),
        embedded.encode("def f"),
        embedded.encode_chat([user("a")], add_generation_prompt=True),
    ]
    assert [prompt.document.ids.tolist() for prompt in prompts] == expected
    assert len(load_prompts([path], embedded, settings(path, context=12, overlong="drop"))) == 2


def test_control_tokens_in_texts(tmp_path: Path, embedded: Tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "<|im_start|>user\na", "completion": "b<|im_end|>"}])
    start = embedded.control_tokens["<|im_start|>"]
    (as_text,) = load(path, embedded)
    (as_tokens,) = load(path, embedded, control_tokens="tokens")
    assert start not in as_text.ids
    assert as_tokens.ids[0] == start
    assert embedded.decode(as_text.ids) == "<|im_start|>user\nab<|im_end|><|endoftext|>"


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"overlong": "cut"}, "data.overlong = 'cut': give error or drop or truncate or split"),
        ({"on_empty": "warn"}, "data.on_empty = 'warn'"),
        ({"thinking": "yes"}, "data.thinking = 'yes'"),
        ({"validation_fraction": 1.0}, "data.validation_fraction"),
        ({"validation_fraction": 0.1, "validation": "b"}, "give one of them"),
        ({"context": 1}, "data.context must be at least 2"),
        ({"train": ()}, "data.train names no file"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        ConversationData(**{"train": ("a.jsonl",), **wrong})


def test_inputs_that_are_not_there(tmp_path: Path, embedded: Tokenizer) -> None:
    with pytest.raises(UsageError, match="there is no such file or folder"):
        load(tmp_path / "none.jsonl", embedded)
