"""Source files as documents: plain, as repositories, and with holes in three forms."""

import random
from pathlib import Path

import pytest

from codemill.chat import Tokenizer
from codemill.chat.prompts import fim_ids, repository_ids
from codemill.data.code_documents import CodeTransform
from codemill.data.conversations import ConversationData, load_code
from codemill.data.fim import fim_transform
from codemill.data.fim_chat import DIVIDER, MISSING, REPLACE, SEARCH, edit_messages
from codemill.data.packing import Document
from codemill.errors import CodemillError, UsageError
from data.conversations import learned, write_lines

FILES = [("a.py", "def a():\n    return 1\n"), ("lib/b.py", "from a import a\n\n\ndef b():\n    return a() + 1")]
END = "<|endoftext|>"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, content in FILES:
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "project"


def load(path: Path, tokenizer: Tokenizer, context: int = 512, **transform: object) -> list[Document]:
    settings = ConversationData((str(path),), context=context, cache=str(path.parent / "cache"))
    return list(load_code([path], tokenizer, settings, CodeTransform(**transform)))


def texts(documents: list[Document], tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(document.ids.tolist()) for document in documents]


def test_files_alone(repository: Path, embedded: Tokenizer) -> None:
    documents = load(repository, embedded)
    assert texts(documents, embedded) == [content + END for _, content in FILES]
    assert all(document.weights.all() for document in documents)


def test_a_repository_is_what_is_served(repository: Path, embedded: Tokenizer) -> None:
    (document,) = load(repository, embedded, level="repository")
    assert document.ids.tolist() == [*repository_ids(embedded, "project", FILES), embedded.control_tokens[END]]


def test_a_hole_in_a_repository_is_what_is_served(repository: Path, embedded: Tokenizer) -> None:
    (document,) = load(repository, embedded, level="repository", fim=1.0)
    path, content = FILES[1]
    middle = document.ids.tolist().index(embedded.control_tokens["<|fim_middle|>"])
    ids = document.ids.tolist()
    prefix_at, suffix_at = (ids.index(embedded.control_tokens[f"<|fim_{part}|>"]) for part in ("prefix", "suffix"))
    prefix, suffix = embedded.decode(ids[prefix_at + 1 : suffix_at]), embedded.decode(ids[suffix_at + 1 : middle])
    served = fim_ids(embedded, prefix, suffix, "project", FILES[:1], path)
    assert ids[: middle + 1] == served
    assert embedded.decode(ids[middle + 1 :]) == content[len(prefix) : len(content) - len(suffix)] + END


def test_holes_as_conversations(repository: Path, embedded: Tokenizer) -> None:
    (document,) = load(repository, embedded, level="repository", fim_chat=1.0)
    question = embedded.decode(document.ids.tolist())
    assert MISSING in question
    assert "`a.py`:\n```\ndef a():" in question
    (answer,) = learned(embedded, document)
    assert answer.startswith("```\n")
    assert answer.endswith("\n```<|im_end|>")
    assert answer[4:-14] in FILES[1][1]


@pytest.mark.parametrize("seed", range(20))
def test_applying_the_block_fills_the_hole(seed: int) -> None:
    text = "".join(f"def f{i}(x):\n    y = x + {i}\n    return y\n\n" for i in range(9))
    hole = fim_transform(text, random.Random(seed))
    answer = edit_messages(hole, "f.py")[1]["content"]
    old, new = answer.removeprefix(f"{SEARCH}\n").removesuffix(f"\n{REPLACE}").split(f"\n{DIVIDER}\n")
    holed = hole.prefix + MISSING + hole.suffix
    assert holed.count(old) == 1
    assert holed.replace(old, new) == text


def test_repositories_of_records_cut_between_files(tmp_path: Path, embedded: Tokenizer) -> None:
    records = [{"repo": f"r{i // 10}", "path": f"{i}.py", "content": f"x = {i}\n" * (5 + i % 3)} for i in range(30)]
    path = write_lines(tmp_path / "code.jsonl", [*records, {"repo": "r3", "path": "empty.py", "content": ""}])
    documents = load(path, embedded, context=160, level="repository")
    assert max(map(len, documents)) <= 160
    found = "".join(texts(documents, embedded))
    assert found.count("<|file_sep|>") == 30
    assert all(text.startswith("<|repo_name|>r") and text.endswith(END) for text in texts(documents, embedded))
    assert all(text.count("<|repo_name|>") == 1 for text in texts(documents, embedded))
    assert len(documents) < 15


def test_the_seed_decides(tmp_path: Path, embedded: Tokenizer) -> None:
    records = [{"repo": "r", "path": f"{i}.py", "content": f"def f{i}():\n    return {i}\n"} for i in range(60)]
    path = write_lines(tmp_path / "code.jsonl", records)
    first = texts(load(path, embedded, fim=0.5), embedded)
    assert 15 < sum("<|fim_middle|>" in text for text in first) < 45
    write_lines(path, [*records[30:], *records[:30]])
    assert texts(load(path, embedded, fim=0.5), embedded) == first[30:] + first[:30]
    assert texts(load(path, embedded, fim=0.5, seed=1), embedded) != first[30:] + first[:30]


def test_a_folder_of_checkouts_holds_several_repositories(repository: Path, embedded: Tokenizer) -> None:
    other = repository.parent / "all" / "other"
    other.mkdir(parents=True)
    repository.rename(repository.parent / "all" / "project")
    (other / "c.py").write_text("c = 3\n")
    for name in ("other", "project"):
        (repository.parent / "all" / name / ".git").mkdir()
    first, second = texts(load(repository.parent / "all", embedded, level="repository"), embedded)
    assert first == f"<|repo_name|>other\n<|file_sep|>c.py\nc = 3\n{END}"
    assert second.startswith("<|repo_name|>project\n<|file_sep|>a.py\n")
    (repository.parent / "all" / "other").rename(repository.parent / "all" / "renamed")
    assert texts(load(repository.parent / "all", embedded, level="repository"), embedded) == [
        second,
        first.replace("other", "renamed"),
    ]


def test_a_record_that_is_no_source_file(tmp_path: Path, embedded: Tokenizer) -> None:
    path = write_lines(tmp_path / "code.jsonl", [{"repo": "r", "path": "a", "content": "x"}, {"path": "b"}])
    with pytest.raises(CodemillError, match=rf"{path}:2: a source file is"):
        load(path, embedded)


@pytest.mark.parametrize("wrong", [{"level": "folder"}, {"fim": 0.6, "fim_chat": 0.6}, {"fim_edit": -0.1}])
def test_a_transform_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(UsageError, match="give"):
        CodeTransform(**wrong)
