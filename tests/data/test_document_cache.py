"""The cache of tokenised documents: made once, resumed, made anew where something changed or broke."""

import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from codemill.chat import Tokenizer
from codemill.data import segments, tokenizing
from codemill.data.conversations import ConversationData, load_documents
from codemill.data.document_cache import DocumentCache
from codemill.data.document_shard import BrokenShard, ShardEntry, open_shard, write_shard
from codemill.data.overlong import FittedDocuments
from codemill.data.packing import Document
from codemill.data.segments import cut_segments, find_inputs
from data.conversations import CHAT, TOOLS, says, user, write_lines

RECORDS = [{"messages": [user(f"Count to {n}."), says(" ".join(map(str, range(1, n))))]} for n in range(2, 40)]


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 700)
    monkeypatch.setattr(segments, "GZIP_SEGMENT_BYTES", 900)


def load(folder: Path, tokenizer: Tokenizer, *paths: Path, **settings: object) -> FittedDocuments:
    names = tuple(map(str, paths))
    return load_documents(names, tokenizer, ConversationData(names, cache=str(folder / "cache"), **settings))


def shards(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cache").iterdir()}


def contents(documents: FittedDocuments) -> list[tuple[list[int], list[float]]]:
    return [(document.ids.tolist(), document.weights.tolist()) for document in documents]


def test_documents_in_order_with_their_lines(tmp_path: Path, embedded: Tokenizer, small_segments: None) -> None:
    path = write_lines(tmp_path / "a.jsonl", RECORDS)
    documents = load(tmp_path, embedded, path)
    assert len(shards(tmp_path)) > 3
    assert len(documents) == len(RECORDS)
    for index, record in enumerate(RECORDS):
        expected = embedded.encode_chat(record["messages"], add_generation_prompt=False)
        assert documents[index].ids.tolist() == expected
        assert documents.where(index) == f"{path}:{index + 1}"
    assert documents[-1].ids.tolist() == expected
    with pytest.raises(IndexError):
        documents[len(RECORDS)]
    assert documents.lengths.tolist() == [len(document) for document in documents]


def test_several_processes_make_the_same(tmp_path: Path, embedded: Tokenizer, small_segments: None) -> None:
    path = write_lines(tmp_path / "a.jsonl", RECORDS)
    alone = contents(load(tmp_path / "1", embedded, path))
    assert contents(load(tmp_path / "2", embedded, path, workers=2)) == alone
    assert shards(tmp_path / "1").keys() == shards(tmp_path / "2").keys()


def test_compressed_files_are_the_same(tmp_path: Path, embedded: Tokenizer, small_segments: None) -> None:
    path = write_lines(tmp_path / "a.jsonl", RECORDS)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    documents = load(tmp_path, embedded, packed)
    assert contents(documents) == contents(load(tmp_path, embedded, path))
    assert documents.where(30) == f"{packed}:31"


def test_a_second_run_makes_nothing(
    tmp_path: Path, embedded: Tokenizer, small_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "a.jsonl", RECORDS)
    first = load(tmp_path, embedded, path)
    made = shards(tmp_path)
    monkeypatch.setattr(tokenizing, "write_shard", None)
    assert contents(load(tmp_path, embedded, path, context=8, overlong="truncate")) != contents(first)
    assert contents(load(tmp_path, embedded, path)) == contents(first)
    assert shards(tmp_path) == made


def test_only_what_is_new_is_made(tmp_path: Path, embedded: Tokenizer, small_segments: None) -> None:
    path = write_lines(tmp_path / "a.jsonl", RECORDS)
    load(tmp_path, embedded, path)
    before = shards(tmp_path)
    write_lines(path, [*RECORDS, *RECORDS])
    assert len(load(tmp_path, embedded, path)) == 2 * len(RECORDS)
    after = shards(tmp_path)
    kept = [name for name in before if after[name] == before[name]]
    assert len(kept) == len(before)
    load(tmp_path, embedded, path, only_last_turn_loss=True)
    assert len(shards(tmp_path)) == len(after) + len(cut_segments(find_inputs([path])))


def test_a_build_that_stopped_goes_on(
    tmp_path: Path, embedded: Tokenizer, small_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "a.jsonl", RECORDS)
    expected = contents(load(tmp_path / "other", embedded, path))
    write, left = tokenizing.write_shard, [2]

    def killed(*arguments: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(tokenizing, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, embedded, path)
    done = shards(tmp_path)
    assert len(done) == 2
    monkeypatch.setattr(tokenizing, "write_shard", write)
    assert contents(load(tmp_path, embedded, path)) == expected
    assert {name: shards(tmp_path)[name] for name in done} == done


KILLED = """
import os, signal, sys
from pathlib import Path
from codemill.chat import Tokenizer
from codemill.data import document_shard, segments, tokenizing
from codemill.data.conversations import ConversationData, load_documents

segments.SEGMENT_BYTES = 700
count, replace = [0], os.replace

def killed(*arguments):
    count[0] += 1
    if count[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # between the last byte of a file and its name
    replace(*arguments)

document_shard.os.replace = killed
load_documents([sys.argv[1]], Tokenizer.load(), ConversationData((sys.argv[1],), cache=sys.argv[2]))
"""


def test_a_killed_process_leaves_whole_shards(tmp_path: Path, embedded: Tokenizer, small_segments: None) -> None:
    path = write_lines(tmp_path / "a.jsonl", RECORDS)
    done = subprocess.run([sys.executable, "-c", KILLED, path, tmp_path / "cache"], check=False)
    assert done.returncode == -signal.SIGKILL
    whole = {file: stamp for file, stamp in shards(tmp_path).items() if not file.startswith(".")}
    assert len(whole) == 2
    documents = load(tmp_path, embedded, path)
    assert contents(documents) == contents(load(tmp_path / "other", embedded, path))
    assert {name: shards(tmp_path)[name] for name in whole} == whole


@pytest.mark.parametrize("damage", ["cut", "changed", "header", "empty"])
def test_a_damaged_shard_is_named_and_made_again(tmp_path: Path, embedded: Tokenizer, damage: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [CHAT, TOOLS])
    expected = contents(load(tmp_path, embedded, path))
    (shard,) = (tmp_path / "cache").iterdir()
    data = shard.read_bytes()
    middle = 60 if damage == "header" else len(data) - 40
    changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    shard.write_bytes({"cut": data[:-8], "changed": changed, "header": changed, "empty": b""}[damage])
    with pytest.raises(BrokenShard, match=str(shard)):
        open_shard(shard, verify=True)
    assert contents(load(tmp_path, embedded, path)) == expected
    assert shard.read_bytes() == data


def test_a_shard_holds_what_was_written(tmp_path: Path) -> None:
    entries = [
        ShardEntry(Document.of([1, 2, 3], [0.0, 0.0, 0.25]), 0, 4, "web"),
        ShardEntry(Document.of([9, 8], [1.0, 0.0]), 1, 0, is_text=True),
    ]
    write_shard(tmp_path / "a", entries, [(1, 2, "why")], records=3)
    shard = open_shard(tmp_path / "a", verify=True)
    assert [shard.document(i).ids.tolist() for i in range(len(shard))] == [[1, 2, 3], [9, 8]]
    assert [shard.document(i).weights.tolist() for i in range(len(shard))] == [[0, 0, 0.25], [1, 0]]
    assert shard.arrays["learned"].tolist() == [1, 0]
    assert (shard.header.domains, shard.header.empty, shard.header.records) == (("", "web"), ((1, 2, "why"),), 3)
    assert shard.arrays["is_text"].tolist() == [0, 1]
    assert isinstance(shard.arrays["ids"].base, np.memmap | np.ndarray)


def test_a_shard_without_documents(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", [], [(0, 0, "why")], records=1)
    assert len(open_shard(tmp_path / "a", verify=True)) == 0


def test_small_files_share_a_segment(tmp_path: Path, embedded: Tokenizer) -> None:
    (tmp_path / "code").mkdir()
    for name in ("b.py", "a.py", "c.jsonl"):
        text = json.dumps({"text": "y = 1"}) if name == "c.jsonl" else f"name = '{name}'\n"
        (tmp_path / "code" / name).write_text(text)
    files = [tmp_path / "code" / name for name in ("a.py", "b.py", "c.jsonl")]
    assert len(cut_segments(find_inputs(files))) == 1
    documents = load(tmp_path, embedded, *files)
    assert [documents.where(i) for i in range(3)] == [
        str(tmp_path / "code" / "a.py"),
        str(tmp_path / "code" / "b.py"),
        f"{tmp_path / 'code' / 'c.jsonl'}:1",
    ]
    assert embedded.decode(documents[1].ids) == "name = 'b.py'\n<|endoftext|>"


def test_progress_is_told_in_bytes(tmp_path: Path, embedded: Tokenizer, small_segments: None) -> None:
    path = write_lines(tmp_path / "a.jsonl", RECORDS)
    seen: list[int] = []
    settings = ConversationData((str(path),), cache=str(tmp_path / "cache"))
    load_documents([path], embedded, settings, seen.append)
    assert sum(seen) == path.stat().st_size
    assert len(seen) > 3


def test_the_folder_of_a_cache_that_cannot_be_written(tmp_path: Path, embedded: Tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", [CHAT])
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="cannot write"):
        DocumentCache(tmp_path / "file" / "cache").documents([path], embedded, tokenizing.Recipe())
