"""Conversations, texts and preference pairs in files -> documents with loss weights, tokenised once, kept on disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

from codemill.chat.tokenizer import Tokenizer
from codemill.data.cached_documents import CachedDocuments, Int64
from codemill.data.chat_encoder import THINKING
from codemill.data.code_documents import CodeTransform
from codemill.data.document_cache import DocumentCache, default_cache
from codemill.data.overlong import POLICIES, FittedDocuments
from codemill.data.packing import Document
from codemill.data.tokenizing import Recipe
from codemill.data.turn_cuts import Turns
from codemill.errors import CodemillError, UsageError

Progress = Callable[[int], None]
_CHOICES = {
    "overlong": POLICIES,
    "on_empty": ("error", "skip"),
    "thinking": tuple(THINKING),
    "control_tokens": ("text", "tokens"),
}


@dataclass(frozen=True)
class ConversationData:
    """`[data]` of a run on conversations: what is read, and what becomes of it.

    train, validation: files and folders (docs/data_formats.md). validation_fraction: this share of the training
    conversations is held out instead. context: most tokens of a document, and the length of packed rows. overlong: what
    becomes of longer ones. on_empty: whether a conversation with nothing to learn from is an error or is skipped.
    thinking: "on" or "off" is told to the chat template. control_tokens: what control tokens in texts outside of chats
    become. cache: a folder for tokenised documents, "" for the user's. workers: processes that tokenise.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    validation_fraction: float = 0.0
    context: int = 4096
    overlong: str = "error"
    on_empty: str = "error"
    only_last_turn_loss: bool = False
    thinking: str = "auto"
    control_tokens: str = "text"
    packing: bool = True
    cache: str = ""
    workers: int = 1

    def __post_init__(self) -> None:
        """Raises UsageError naming the key that is wrong."""
        for name in ("train", "validation"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"data.{name} = {getattr(self, name)!r}: give {' or '.join(choices)}")
        if not self.train:
            raise UsageError("data.train names no file")
        if not 0 <= self.validation_fraction < 1:
            raise UsageError(
                f"data.validation_fraction = {self.validation_fraction} must be at least 0 and less than 1"
            )
        if self.validation and self.validation_fraction:
            raise UsageError("data.validation and data.validation_fraction: give one of them")
        if self.context < 2 or self.workers < 1:
            raise UsageError("data.context must be at least 2, data.workers at least 1")

    def recipe(self, kind: str) -> Recipe:
        """What decides which documents the records become, in the shape that names a cache."""
        return Recipe(kind, self.only_last_turn_loss, self.thinking, self.control_tokens)

    @property
    def cache_directory(self) -> Path:
        return Path(self.cache) if self.cache else default_cache()


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, which both documents begin with; only the answers have loss weights."""

    chosen: Document
    rejected: Document


@dataclass(frozen=True)
class Prompt:
    """What is given to a model to answer: ids [n], the opening of the answer included. domain: picks the teacher.

    where: its file and line.
    """

    document: Document
    domain: str = ""
    where: str = ""


class Prompts(Sequence[Prompt]):
    """What documents ask."""

    def __init__(self, documents: FittedDocuments) -> None:
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        documents = self.documents
        return Prompt(documents[index], documents.domain(index), documents.where(index))


class PreferencePairs(Sequence[PreferencePair]):
    """Pairs of documents that stand beside each other in a cache."""

    def __init__(self, documents: FittedDocuments) -> None:
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents) // 2

    @overload
    def __getitem__(self, index: int) -> PreferencePair: ...
    @overload
    def __getitem__(self, index: slice) -> list[PreferencePair]: ...
    def __getitem__(self, index: int | slice) -> PreferencePair | list[PreferencePair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        first = 2 * range(len(self))[index]
        return PreferencePair(self.documents[first], self.documents[first + 1])

    @property
    def lengths(self) -> Int64:
        """Tokens of both documents of each pair [pairs, 2]."""
        return self.documents.lengths.reshape(-1, 2)

    @property
    def learned(self) -> Int64:
        """Tokens with a loss weight of both documents of each pair [pairs, 2]."""
        return self.documents.learned.reshape(-1, 2)


def load_documents(
    paths: Sequence[str | Path], tokenizer: Tokenizer, settings: ConversationData, progress: Progress = lambda _: None
) -> FittedDocuments:
    """The documents of these files, of at most `settings.context` tokens, memory-mapped; tokenised on the first call.

    Raises UsageError or CodemillError, one line that names file and line of a record that is malformed, too long (see
    `overlong`) or has nothing to learn from (see `on_empty`).
    """
    return _load(paths, tokenizer, settings, "documents", progress)


def load_pairs(
    paths: Sequence[str | Path], tokenizer: Tokenizer, settings: ConversationData, progress: Progress = lambda _: None
) -> PreferencePairs:
    """The preference pairs of these files. Raises as `load_documents` does; pairs cannot be split."""
    if settings.overlong == "split":
        raise UsageError('data.overlong = "split": a preference pair cannot be split; give drop or truncate')
    return PreferencePairs(_load(paths, tokenizer, settings, "pairs", progress))


def load_prompts(
    paths: Sequence[str | Path], tokenizer: Tokenizer, settings: ConversationData, progress: Progress = lambda _: None
) -> Prompts:
    """The prompts of these files: "prompt", or the messages before the last answer. Raises as `load_documents` does.

    Those that leave no room in the context are dropped, or an error if `overlong` says so: there is no beginning of a
    question.
    """
    return Prompts(_load(paths, tokenizer, settings, "prompts", progress))


def load_code(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    settings: ConversationData,
    transform: CodeTransform,
    progress: Progress = lambda _: None,
) -> FittedDocuments:
    """Source files, or records {"repo", "path", "content"}, for pre-training. Raises as `load_documents` does."""
    recipe = replace(settings.recipe("code"), code=replace(transform, max_tokens=settings.context))
    cache = DocumentCache(settings.cache_directory)
    return _fitted(cache.documents(paths, tokenizer, recipe, settings.workers, progress), settings, paths, tokenizer)


def _load(
    paths: Sequence[str | Path], tokenizer: Tokenizer, settings: ConversationData, kind: str, progress: Progress
) -> FittedDocuments:
    cache = DocumentCache(settings.cache_directory)
    documents = cache.documents(paths, tokenizer, settings.recipe(kind), settings.workers, progress)
    group, room = 2 if kind == "pairs" else 1, 1 if kind == "prompts" else 0
    return _fitted(documents, settings, paths, tokenizer, group, room)


def _fitted(
    documents: CachedDocuments,
    settings: ConversationData,
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    group: int = 1,
    room: int = 0,
) -> FittedDocuments:
    if documents.empty and settings.on_empty == "error":
        where, reason = documents.empty[0]
        more = f" (and {len(documents.empty) - 1:,} more)" if len(documents.empty) > 1 else ""
        raise CodemillError(f'{where}: {reason}{more}; on_empty = "skip" leaves such records out')
    if not len(documents):
        raise CodemillError(f"{', '.join(map(str, paths))}: no records to learn from")
    return FittedDocuments(documents, settings.context, settings.overlong, group, Turns.of(tokenizer), room)
