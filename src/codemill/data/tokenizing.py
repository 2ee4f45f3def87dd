"""A segment of the input -> a shard of tokenised documents, in this process or in several."""

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from codemill.chat.tokenizer import Tokenizer
from codemill.data.chat_encoder import ExampleEncoder
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
from codemill.errors import CodemillError

KINDS = ("documents", "pairs", "prompts")
_FORMAT = 1  # of what a record becomes; another number makes all caches anew
_NOTHING = "nothing to learn from: no token of it has a loss weight"


@dataclass(frozen=True)
class Recipe:
    """All that decides which documents a record becomes, beside the tokenizer. kind: of `KINDS`."""

    kind: str = "documents"
    only_last_turn_loss: bool = False
    thinking: str = "auto"
    control_tokens: str = "text"

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
        entries: list[ShardEntry] = []
        empty: list[tuple[int, int, str]] = []
        records = 0
        encoder = ExampleEncoder(self.tokenizer, self.recipe.thinking, self.recipe.control_tokens)
        for number, piece in enumerate(segment.pieces):
            for record in read_records(piece):
                records += 1
                new, fault = _entries(record, number, encoder, self.recipe)
                entries += new
                empty += [(number, record.line - piece.first_line, fault)] if fault else []
        write_shard(path, entries, empty, records)
        return segment.size

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


def encode_record(record: Record, encoder: ExampleEncoder, recipe: Recipe) -> list[tuple[Document, bool]]:
    """The documents of a record (two for a pair), and whether each is a text that may be cut anywhere.

    Raises CodemillError naming file and line, NothingToLearn without them.
    """
    try:
        if recipe.kind == "prompts":
            return [(encoder.encode_prompt(parse_prompt(record.value)), False)]
        if recipe.kind == "pairs":
            pair = parse_pair(record.value, recipe.only_last_turn_loss)
            return [(encoder.encode(example), False) for example in (pair.chosen, pair.rejected)]
        example = parse_example(record.value, recipe.only_last_turn_loss)
        return [(encoder.encode(example), isinstance(example, Continuation) and example.is_text)]
    except NothingToLearn:
        raise
    except CodemillError as error:
        raise CodemillError(f"{record.where}: {error}") from None


def _entries(record: Record, number: int, encoder: ExampleEncoder, recipe: Recipe) -> tuple[list[ShardEntry], str]:
    """The entries of a record, or none and why."""
    try:
        documents = encode_record(record, encoder, recipe)
    except NothingToLearn as error:
        return [], str(error)
    if recipe.kind != "prompts" and not all(learned_tokens(document) for document, _ in documents):
        return [], _NOTHING
    domain, line = parse_domain(record.value), record.line - record.piece.first_line
    return [ShardEntry(document, number, line, domain, is_text) for document, is_text in documents], ""


_worker: Tokenizing | None = None


def _start_worker(tokenizing: Tokenizing) -> None:
    global _worker
    _worker = tokenizing


def _write(segment: Segment, path: Path) -> int:
    assert _worker is not None
    return _worker.write(segment, path)
