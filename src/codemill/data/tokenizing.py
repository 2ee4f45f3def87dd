"""A segment of the input -> a shard of tokenised documents, in this process or in several."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from codemill.chat.tokenizer import Tokenizer
from codemill.data.chat_encoder import ExampleEncoder
from codemill.data.code_documents import CodeDocuments, CodeTransform
from codemill.data.conversation_formats import (
    Continuation,
    NothingToLearn,
    parse_domain,
    parse_example,
    parse_pair,
    parse_prompt,
)
from codemill.data.document_shard import ShardEntry, learned_tokens, write_shard
from codemill.data.packing import Document
from codemill.data.records import Record, read_records
from codemill.data.segments import Segment
from codemill.errors import CodemillError, UsageError

KINDS = ("documents", "pairs", "prompts", "code")
_Outcome = tuple[list[ShardEntry], tuple[int, int, str] | None]  # documents, or where there are none and why
_FORMAT = 2  # of what a record becomes; another number makes all caches anew


@dataclass(frozen=True)
class Recipe:
    """All that decides which documents a record becomes, beside the tokenizer. kind: of `KINDS`; code: for the last."""

    kind: str = "documents"
    only_last_turn_loss: bool = False
    thinking: str = "auto"
    control_tokens: str = "text"
    code: CodeTransform | None = None

    def key(self, tokenizer: Tokenizer, segment: Segment) -> str:
        """The name of the shard that holds this segment's documents."""
        parts = json.dumps([_FORMAT, asdict(self), tokenizer.fingerprint, segment.digest], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()[:40]


@dataclass(frozen=True)
class Tokenizing:
    """Makes shards by a recipe."""

    tokenizer: Tokenizer
    recipe: Recipe

    def write(self, segment: Segment, path: Path) -> int:
        """Write the shard of a segment; returns the bytes read. Raises CodemillError naming file and line."""
        encoder = ExampleEncoder(self.tokenizer, self.recipe.thinking, self.recipe.control_tokens)
        found = self._code_entries(segment, encoder) if self.recipe.code else self._entries(segment, encoder)
        entries, empty = [], []
        records = 0
        for new, fault in found:
            entries += new
            empty += [fault] if fault else []
            records += 1
        write_shard(path, entries, empty, records)
        return segment.size

    def _entries(self, segment: Segment, encoder: ExampleEncoder) -> Iterator[_Outcome]:
        """What becomes of each record."""
        for number, piece in enumerate(segment.pieces):
            for record in read_records(piece):
                entries, fault = _entries(record, number, encoder, self.recipe)
                yield entries, (number, record.line - piece.first_line, fault) if fault else None

    def _code_entries(self, segment: Segment, encoder: ExampleEncoder) -> Iterator[_Outcome]:
        """The documents that source files become."""
        assert self.recipe.code is not None
        records = (record for piece in segment.pieces for record in read_records(piece))
        numbers = {piece: number for number, piece in enumerate(segment.pieces)}
        for record, document in CodeDocuments(self.tokenizer, encoder, self.recipe.code).documents(records):
            line = record.line - record.piece.first_line
            yield [ShardEntry(document, numbers[record.piece], line, is_text=True)], None

    def write_all(
        self, wanted: Mapping[Path, Segment], workers: int, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Write all these shards; those that are done when it is interrupted stay. progress: called with bytes read."""
        workers = min(workers, len(wanted))
        if workers < 2:
            for path, segment in wanted.items():
                progress(self.write(segment, path))
            return
        context = get_context("spawn")  # a fork would copy the threads' locks of whatever library runs here
        with ProcessPoolExecutor(workers, context, _start_worker, (self,)) as pool:
            waiting = [pool.submit(_write, segment, path) for path, segment in wanted.items()]
            try:
                for done in as_completed(waiting):
                    progress(done.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@dataclass(frozen=True)
class EncodedRecord:
    """The documents of a record, two for a pair. is_text: a text, which may be cut anywhere."""

    documents: tuple[Document, ...]
    domain: str
    is_text: bool = False


def encode_record(record: Record, encoder: ExampleEncoder, recipe: Recipe) -> EncodedRecord:
    """Raises CodemillError naming file and line, NothingToLearn without them."""
    try:
        _check_text(record)
        encoded = _encoded(record.value, encoder, recipe)
    except NothingToLearn:
        raise
    except CodemillError as error:
        raise CodemillError(f"{record.where}: {error}") from None
    if recipe.kind != "prompts" and not all(map(learned_tokens, encoded.documents)):
        raise NothingToLearn("nothing to learn from: no token of it has a loss weight")
    if recipe.kind == "pairs" and np.array_equal(encoded.documents[0].ids, encoded.documents[1].ids):
        raise NothingToLearn("chosen and rejected are the same as the chat template writes them: nothing to prefer")
    return encoded


def _check_text(record: Record) -> None:
    """Raises UsageError for records in a file whose name says that it is a text."""
    text = record.value.get("text")
    if record.line or not isinstance(text, str) or not text.startswith("{"):
        return
    try:
        is_record = isinstance(json.loads(text.partition("\n")[0]), dict)
    except (ValueError, RecursionError):
        return
    if is_record:
        raise UsageError("each line is a record: name the file .jsonl")


def _encoded(value: Mapping[str, Any], encoder: ExampleEncoder, recipe: Recipe) -> EncodedRecord:
    domain = parse_domain(value)
    if recipe.kind == "prompts":
        return EncodedRecord((encoder.encode_prompt(parse_prompt(value)),), domain)
    if recipe.kind == "pairs":
        pair = parse_pair(value, recipe.only_last_turn_loss)
        return EncodedRecord((encoder.encode(pair.chosen), encoder.encode(pair.rejected)), domain)
    example = parse_example(value, recipe.only_last_turn_loss)
    return EncodedRecord((encoder.encode(example),), domain, isinstance(example, Continuation) and example.is_text)


def _entries(record: Record, number: int, encoder: ExampleEncoder, recipe: Recipe) -> tuple[list[ShardEntry], str]:
    """The entries of a record, or none and why."""
    try:
        encoded = encode_record(record, encoder, recipe)
    except NothingToLearn as error:
        return [], str(error)
    line = record.line - record.piece.first_line
    entries = [ShardEntry(each, number, line, encoded.domain, encoded.is_text) for each in encoded.documents]
    return entries, ""


_worker: Tokenizing | None = None


def _start_worker(tokenizing: Tokenizing) -> None:
    global _worker
    _worker = tokenizing


def _write(segment: Segment, path: Path) -> int:
    assert _worker is not None
    return _worker.write(segment, path)
