"""Source files -> documents for pre-training and mid-training: files or whole repositories, some with a hole to fill.

Formats: Qwen2.5-Coder (Hui et al. 2024), figures 3 and 4. Every choice depends on the seed and the document alone.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from codemill.chat.prompts import FILE_SEP, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, REPO_NAME
from codemill.chat.tokenizer import Tokenizer
from codemill.data.chat_encoder import ExampleEncoder
from codemill.data.conversation_formats import parse_example
from codemill.data.fim import FimExample, fim_transform
from codemill.data.fim_chat import Messages, can_ask, edit_messages, fill_messages
from codemill.data.packing import Document
from codemill.data.records import Record
from codemill.errors import CodemillError, UsageError

LEVELS = ("file", "repository")


@dataclass(frozen=True)
class CodeTransform:
    """level: whether a document is a file, or the files of a repository. Shares of the documents in which a part is
    missing: fim as tokens, fim_chat as a conversation, fim_edit as one answered by a search-and-replace block. A
    document that would have more than max_tokens with a hole gets none; repositories are cut between files."""

    level: str = "file"
    fim: float = 0.0
    fim_chat: float = 0.0
    fim_edit: float = 0.0
    seed: int = 0
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        """Raises UsageError for a level or a share that is none."""
        shares = (self.fim, self.fim_chat, self.fim_edit)
        if self.level not in LEVELS:
            raise UsageError(f"level {self.level!r}: give {' or '.join(LEVELS)}")
        if min(shares) < 0 or sum(shares) > 1:
            raise UsageError(f"shares {shares} of documents with a hole: give numbers from 0, at most 1 in all")


@dataclass(frozen=True)
class SourceFile:
    """A file of a repository. ids: of `<|file_sep|>PATH\\nCONTENT`, with a newline at its end."""

    record: Record
    repo: str
    path: str
    content: str
    ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class CodeDocuments:
    """Makes documents of the records {"repo", "path", "content"} and of files below folders."""

    tokenizer: Tokenizer
    encoder: ExampleEncoder
    transform: CodeTransform

    def documents(self, records: Iterable[Record]) -> Iterator[tuple[Record, Document]]:
        """Documents, each with the record it begins with. Files of a repository must follow one another.

        Raises CodemillError naming the record that is no source file.
        """
        files = (file for file in map(_source_file, records) if file.content.strip())
        if self.transform.level == "file":
            for file in files:
                yield file.record, self._document([file])
        else:
            for _, members in groupby(files, key=lambda file: file.repo):
                for group in self._groups(members):
                    yield group[0].record, self._document(group)

    def _groups(self, files: Iterable[SourceFile]) -> Iterator[list[SourceFile]]:
        """Neighbours that together, with the name of the repository and the end, have at most max_tokens."""
        group: list[SourceFile] = []
        size = 0
        for file in files:
            text = f"{file.path}\n{file.content}" + ("" if file.content.endswith("\n") else "\n")
            ids = [self._control(FILE_SEP), *self.tokenizer.encode(text)]
            if group and size + len(ids) > self.transform.max_tokens:
                yield group
                group = []
            size = (size if group else len(self._name(file.repo)) + 1) + len(ids)
            group.append(SourceFile(file.record, file.repo, file.path, file.content, ids))
        if group:
            yield group

    def _document(self, files: Sequence[SourceFile]) -> Document:
        last = files[-1]
        draw = random.Random(f"{self.transform.seed}\0{last.repo}\0{last.path}\0{last.content}")
        make = self._form(draw.random())
        document = make(files, fim_transform(last.content, draw)) if make else None
        if document is None or len(document) > self.transform.max_tokens:
            return self._plain(files)
        return document

    def _form(self, draw: float) -> Callable[[Sequence[SourceFile], FimExample], Document | None] | None:
        transform = self.transform
        if draw < transform.fim:
            return self._with_hole
        if draw < transform.fim + transform.fim_chat:
            return lambda files, hole: self._as_chat(files, hole, fill_messages)
        if draw < transform.fim + transform.fim_chat + transform.fim_edit:
            return lambda files, hole: self._as_chat(files, hole, edit_messages)
        return None

    def _plain(self, files: Sequence[SourceFile]) -> Document:
        ids = self._repository(files) if self.transform.level == "repository" else self._encode(files[0].content)
        return _learned([*ids, self.encoder.end_of_text])

    def _with_hole(self, files: Sequence[SourceFile], hole: FimExample) -> Document:
        """The other files, then the last as prefix, suffix and middle."""
        before: list[int] = []
        if self.transform.level == "repository":
            before = [*self._repository(files[:-1], files[-1].repo), self._control(FILE_SEP)]
            before += self._encode(f"{files[-1].path}\n")
        parts = [(FIM_PREFIX, hole.prefix), (FIM_SUFFIX, hole.suffix), (FIM_MIDDLE, hole.middle)]
        ids = [i for token, text in parts for i in (self._control(token), *self._encode(text))]
        return _learned([*before, *ids, self.encoder.end_of_text])

    def _as_chat(
        self, files: Sequence[SourceFile], hole: FimExample, messages: Callable[..., Messages]
    ) -> Document | None:
        if not can_ask(hole):
            return None
        others = [(file.path, file.content) for file in files[:-1]]
        return self.encoder.encode(parse_example({"messages": messages(hole, files[-1].path, others)}))

    def _repository(self, files: Sequence[SourceFile], repo: str | None = None) -> list[int]:
        name = self._name(files[0].repo if repo is None else repo)
        return [*name, *(i for file in files for i in file.ids)]

    def _name(self, repo: str) -> list[int]:
        return [self._control(REPO_NAME), *self._encode(f"{repo}\n")]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def _control(self, token: str) -> int:
        found = self.tokenizer.control_tokens.get(token)
        if found is None:
            raise UsageError(f"the vocabulary has no {token}: give a tokenizer of a code model, or other transforms")
        return found


def _source_file(record: Record) -> SourceFile:
    value: Mapping[str, Any] = record.value
    content = value.get("content", value.get("text"))
    repo, path = value.get("repo", value.get("repo_name", "")), value.get("path", "")
    if not all(isinstance(text, str) for text in (content, repo, path)):
        raise CodemillError(f"{record.where}: a source file is {{repo, path, content}}, all of them texts")
    return SourceFile(record, str(repo), str(path), str(content))


def _learned(ids: list[int]) -> Document:
    return Document(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=np.float32))
