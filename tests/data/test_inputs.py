"""Which files are read, and what is said of those that are not what they seem."""

import json
from pathlib import Path

import pytest

from codemill.chat import Tokenizer
from codemill.data.conversations import ConversationData, load_documents, load_pairs
from codemill.data.overlong import FittedDocuments
from codemill.data.segments import find_inputs
from codemill.errors import CodemillError, UsageError
from data.conversations import CHAT, call, result, says, user, with_template, write_lines

LINE = json.dumps(CHAT).encode() + b"\n"


def load(path: Path, tokenizer: Tokenizer) -> FittedDocuments:
    return load_documents([path], tokenizer, ConversationData((str(path),), cache=str(path.parent / "cache")))


@pytest.mark.parametrize("content", [b"[" + LINE + b"," + LINE + b"]", LINE + LINE, b"\xef\xbb\xbf[" + LINE * 1 + b"]"])
def test_json_files_hold_a_list_or_lines(content: bytes, tmp_path: Path, embedded: Tokenizer) -> None:
    (tmp_path / "a.json").write_bytes(content)
    documents = load(tmp_path / "a.json", embedded)
    expected = load(write_lines(tmp_path / "a.jsonl", [CHAT]), embedded)[0]
    assert len(documents) == content.count(b"messages")
    assert all(document.ids.tolist() == expected.ids.tolist() for document in documents)
    assert documents.where(len(documents) - 1) == f"{tmp_path / 'a.json'}:{len(documents)}"


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.json", b"[" + LINE + b", 5]", ":2: a record must be a JSON object, found int"),
        ("a.json", b"[" + LINE, ": not JSON"),
        ("a.jsonl", b"[\n" + LINE + b"]", ":1: not JSON: each record must stand on one line"),
        ("a.jsonl", LINE + b'{"text": "a", "text": "b"}', ":2: not JSON: the key 'text' stands twice in one object"),
        ("a.jsonl", LINE + b'{"text": NaN}', ":2: not JSON: NaN is no JSON"),
        ("a.jsonl", LINE + b'{"text": "a\0"}', r":2: a NUL character \(at 12\)"),
        ("a.jsonl", LINE + rb'{"text": "a\ud83d"}', r":2: '\\ud83d' is half of a surrogate pair"),
        ("a.data", LINE, ": each line is a record: name the file .jsonl"),
        ("a.csv", b"a,b", ": convert it to JSON Lines"),
    ],
)
def test_what_is_not_as_it_seems_is_said(
    name: str, content: bytes, fault: str, tmp_path: Path, embedded: Tokenizer
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CodemillError, match=f"^{path}{fault}") as caught:
        load(path, embedded)
    assert "\n" not in str(caught.value)


def test_whole_surrogate_pairs_are_characters(tmp_path: Path, embedded: Tokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(rb'{"text": "a \ud83d\ude00 b"}')
    assert "\U0001f600" in embedded.decode(load(path, embedded)[0].ids.tolist())


def names(given: Path, as_code: bool = False) -> list[str]:
    return [file.path.name for file in find_inputs([given], as_code)]


def test_of_a_folder_the_files_of_records_are_read(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "data.arrow", "README.md", "state.json", ".hidden.jsonl"):
        (tmp_path / name).touch()
    assert names(tmp_path) == ["a.jsonl.gz", "b.jsonl", "data.arrow"]
    assert names(tmp_path, as_code=True) == ["README.md", "a.jsonl.gz", "b.jsonl", "data.arrow", "state.json"]
    for name in ("b.jsonl", "a.jsonl.gz", "data.arrow"):
        (tmp_path / name).unlink()
    assert names(tmp_path) == ["state.json"]
    (tmp_path / "main.js").touch()  # so this is a project, not data
    assert names(tmp_path) == ["README.md", "main.js", "state.json"]
    (tmp_path / "main.js").unlink()
    (tmp_path / "state.json").unlink()
    assert names(tmp_path) == ["README.md"]


def test_patterns(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("b.jsonl", "a.jsonl", "more/c.jsonl", "a[1].jsonl", "a.txt"):
        (tmp_path / name).touch()
    assert names(tmp_path / "*.jsonl") == ["a.jsonl", "a[1].jsonl", "b.jsonl"]
    assert names(tmp_path / "**" / "*.jsonl") == ["a.jsonl", "a[1].jsonl", "b.jsonl", "c.jsonl"]
    assert names(tmp_path / "a[1].jsonl") == ["a[1].jsonl"]
    with pytest.raises(UsageError, match="no file matches"):
        find_inputs([tmp_path / "*.parquet"])


def test_answers_that_become_the_same_are_no_pair(tmp_path: Path, embedded: Tokenizer, embedded_json: Path) -> None:
    pair = {"prompt": [user("a")], "chosen": [says("b", reasoning_content="x")], "rejected": [says("b")]}
    kept = {"prompt": [user("a")], "chosen": [says("b")], "rejected": [says("c")]}
    path = write_lines(tmp_path / "a.jsonl", [kept, {**kept, "chosen": kept["rejected"]}])
    settings = ConversationData((str(path),), cache=str(tmp_path / "cache"))
    with pytest.raises(CodemillError, match=rf"{path}:2: chosen and rejected are the same: .*on_empty = \"skip\""):
        load_pairs([path], embedded, settings)
    skipping = ConversationData((str(path),), cache=str(tmp_path / "cache"), on_empty="skip")
    assert len(load_pairs([path], embedded, skipping)) == 1
    template = (  # leaves thoughts out
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = with_template(embedded_json, template, tmp_path / "tokenizer")
    write_lines(path, [pair])
    with pytest.raises(CodemillError, match=rf"{path}:1: chosen and rejected are the same as the chat template writes"):
        load_pairs([path], tokenizer, settings)


def test_packed_data_is_no_input(tmp_path: Path) -> None:
    for name in ("pack.json", "rows.npy"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=f"{tmp_path} holds packed data"):
        find_inputs([tmp_path])


def test_what_a_row_of_a_table_does_not_have_is_not_learned(tmp_path: Path, embedded: Tokenizer) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    calls = [call("f", {"path": "a", "options": {"deep": 1}}), call("g", {"line": 3})]
    records = [{"messages": [user("q"), says("", each), result("r"), says("done")]} for each in calls]
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    found = load(tmp_path / "a.parquet", embedded)
    expected = load(write_lines(tmp_path / "a.jsonl", records), embedded)
    assert [d.ids.tolist() for d in found] == [d.ids.tolist() for d in expected]
