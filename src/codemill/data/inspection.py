"""What training would learn of some files: the tokens with a loss weight, and figures over all records."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from codemill.chat.tokenizer import Tokenizer
from codemill.data.chat_encoder import ExampleEncoder
from codemill.data.code_documents import CodeDocuments
from codemill.data.conversation_formats import NothingToLearn
from codemill.data.document_shard import learned_tokens
from codemill.data.packing import Document
from codemill.data.records import Record, read_records
from codemill.data.segments import Piece, find_inputs
from codemill.data.tokenizing import Recipe, encode_record
from codemill.errors import CodemillError

PERCENTILES = (5, 50, 95, 99, 100)
_NAMED = 20  # faults
_OF_PROMPTS = {"prompt", "domain", "tools", "system", "id"}


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tokens of one loss weight, as text."""

    text: str
    tokens: int
    weight: float


@dataclass(frozen=True)
class ShownDocument:
    """A document as it is trained on. label: what it is of a pair, else empty."""

    where: str
    stretches: tuple[Stretch, ...]
    label: str = ""

    @property
    def tokens(self) -> int:
        return sum(stretch.tokens for stretch in self.stretches)

    @property
    def learned(self) -> int:
        return sum(stretch.tokens for stretch in self.stretches if stretch.weight)


@dataclass
class Inspection:
    """What was found. control_texts: records with control tokens in texts outside of chats, which are read as text.
    thoughts_left_out: messages of the assistant whose thoughts the template does not write. prompts: records that only
    ask, which are for distillation alone.

    lengths, learned: tokens and learned tokens of each document. faults: the first, a line each.
    """

    context: int
    records: int = 0
    malformed: int = 0
    nothing_to_learn: int = 0
    control_texts: int = 0
    thoughts_left_out: int = 0
    prompts: int = 0
    lengths: list[int] = field(default_factory=list)
    learned: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    shown: list[ShownDocument] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def learned_share(self) -> float:
        return sum(self.learned) / max(self.tokens, 1)

    @property
    def overlong(self) -> int:
        return sum(length > self.context for length in self.lengths)

    def percentiles(self) -> dict[str, int]:
        """Of the lengths; the hundredth is the longest. Empty without documents."""
        if not self.lengths:
            return {}
        values = np.percentile(self.lengths, PERCENTILES, method="inverted_cdf").tolist()
        return {f"p{rank}": int(value) for rank, value in zip(PERCENTILES, values, strict=True)}

    def to_json(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "documents": len(self.lengths),
            "tokens": self.tokens,
            "learned_tokens": sum(self.learned),
            "learned_share": round(self.learned_share, 6),
            "lengths": self.percentiles(),
            "context": self.context,
            "overlong": self.overlong,
            "nothing_to_learn": self.nothing_to_learn,
            "control_texts": self.control_texts,
            "thoughts_left_out": self.thoughts_left_out,
            "prompts": self.prompts,
            "malformed": self.malformed,
            "faults": self.faults,
            "shown": [asdict(shown) for shown in self.shown],
        }

    def add_fault(self, error: CodemillError) -> None:
        if len(self.faults) < _NAMED:
            self.faults.append(str(error))


def inspect(
    inputs: Sequence[str | Path],
    tokenizer: Tokenizer,
    recipe: Recipe,
    context: int,
    limit: int = 3,
    line: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Inspection:
    """Read all records and show the first `limit`, or read the one of `line` alone. What cannot be read is counted.

    A record with "chosen" and "rejected" is shown as the pair it is. progress: called with the sizes of files.
    """
    found = Inspection(context)
    reader = _Reader(tokenizer, recipe, found, line)
    for file in find_inputs(inputs, as_code=recipe.kind == "code"):
        piece = Piece(file, 0, 1 << 62)
        for record, documents in reader.read(piece):
            found.lengths += [len(document) for document in documents]
            found.learned += [learned_tokens(document) for document in documents]
            if len(found.shown) < limit:
                found.shown += _shown(record, documents, tokenizer)
        progress(file.path.stat().st_size)
    return found


@dataclass(frozen=True)
class _Reader:
    tokenizer: Tokenizer
    recipe: Recipe
    found: Inspection
    line: int | None

    def read(self, piece: Piece) -> Iterator[tuple[Record, Sequence[Document]]]:
        """The records that can be learned from, with their documents."""
        encoder = ExampleEncoder(self.tokenizer, self.recipe.thinking, self.recipe.control_tokens)
        records = self._counted(piece)
        if self.recipe.code:
            made = CodeDocuments(self.tokenizer, encoder, self.recipe.code).documents(records)
            yield from ((record, [document]) for record, document in made)
            return
        yield from self._learnable(records, encoder)
        self.found.thoughts_left_out += encoder.thoughts_left_out

    def _learnable(
        self, records: Iterator[Record], encoder: ExampleEncoder
    ) -> Iterator[tuple[Record, Sequence[Document]]]:
        for record in records:
            kind = self._kind(record)
            self.found.prompts += kind == "prompts"
            try:
                encoded = encode_record(record, encoder, replace(self.recipe, kind=kind))
            except NothingToLearn as error:
                self.found.nothing_to_learn += 1
                self.found.add_fault(CodemillError(f"{record.where}: {error}"))
            except CodemillError as error:
                self._malformed(error)
            else:
                yield record, encoded.documents

    def _kind(self, record: Record) -> str:
        if {"chosen", "rejected"} & record.value.keys():
            return "pairs"
        asks = "prompt" in record.value and record.value.keys() <= _OF_PROMPTS
        return "prompts" if asks else self.recipe.kind

    def _counted(self, piece: Piece) -> Iterator[Record]:
        try:
            for record in read_records(piece, self._malformed, self.line):
                self.found.records += 1
                self.found.control_texts += self._reads_control_tokens_as_text(record)
                yield record
        except CodemillError as error:  # a file that cannot be read at all
            self._malformed(error)

    def _reads_control_tokens_as_text(self, record: Record) -> bool:
        texts = [record.value.get(key) for key in ("prompt", "completion", "chosen", "rejected", "text", "content")]
        tokens = self.tokenizer.control_tokens if self.recipe.control_tokens == "text" else ()
        return any(token in text for text in texts if isinstance(text, str) for token in tokens)

    def _malformed(self, error: CodemillError) -> None:
        self.found.malformed += 1
        self.found.add_fault(error)


def _shown(record: Record, documents: Sequence[Document], tokenizer: Tokenizer) -> list[ShownDocument]:
    labels = ("chosen", "rejected") if len(documents) == 2 else ("",)
    pairs = zip(documents, labels, strict=True)
    return [ShownDocument(record.where, stretches(document, tokenizer), label) for document, label in pairs]


def stretches(document: Document, tokenizer: Tokenizer) -> tuple[Stretch, ...]:
    """The document cut where its loss weights change."""
    weights = document.weights.copy()
    weights[:1] = 0  # the first token is never predicted
    cuts = [0, *(np.flatnonzero(np.diff(weights)) + 1).tolist(), len(document)]
    spans = [(start, end) for start, end in pairwise(cuts) if end > start]
    return tuple(
        Stretch(tokenizer.decode(document.ids[start:end].tolist()), end - start, float(weights[start]))
        for start, end in spans
    )
