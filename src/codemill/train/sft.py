"""Supervised fine-tuning: conversations, packed, and cross entropy on what the assistant said."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from codemill.data.conversations import load_documents
from codemill.data.packing import Document, PackedRows, pack, pack_apart
from codemill.errors import UsageError
from codemill.train.config import LoopConfig
from codemill.train.fine_tuning import FineTuning
from codemill.train.loop import Trainer
from codemill.train.objective import CrossEntropy
from codemill.train.run import RunPlan
from codemill.train.source import PackedSource, validation_batches


@dataclass(frozen=True)
class SftData:
    """What a run reads."""

    num_documents: int
    train: PackedRows
    validation: PackedRows | None


class Sft(FineTuning):
    """`codemill train sft`."""

    @cached_property
    def data(self) -> SftData:
        """Documents and rows. Raises UsageError and CodemillError naming the record that is wrong."""
        settings = self.config.data
        documents: Sequence[Document] = load_documents(settings.train, self.tokenizer, settings)
        held_out: Sequence[Document] = ()
        if settings.validation:
            held_out = load_documents(settings.validation, self.tokenizer, settings)
        elif settings.validation_fraction:
            documents, held_out = _split(documents, settings.validation_fraction, self.config.loop.seed)
        return SftData(len(documents), self._pack(documents), self._pack(held_out) if held_out else None)

    @property
    def loop(self) -> LoopConfig:
        return self.config.loop.for_rows(len(self.data.train))

    def plan(self) -> RunPlan:
        return self.plan_of(self.data.train, self.data.num_documents, self.loop)

    def start(self) -> Trainer:
        self.claim()
        data, loop = self.data, self.loop
        policy = self.load_policy()
        validation = {} if data.validation is None else {"validation": validation_batches(data.validation, loop)}
        source = PackedSource(data.train, loop)
        return Trainer(
            *(policy, CrossEntropy(), source, validation, loop, self.config.optimizer, self.directory),
            evaluate=self.evaluation(policy),
        )

    def _pack(self, documents: Sequence[Document]) -> PackedRows:
        settings = self.config.data
        pad_id = self.tokenizer.pad_token_id or 0
        if settings.packing:
            return pack(documents, settings.context, pad_id)
        return pack_apart(documents, pad_id)


def _split(documents: Sequence[Document], fraction: float, seed: int) -> tuple[Sequence[Document], Sequence[Document]]:
    """Two disjoint parts in their order, the second with this share of the documents, at least one."""
    count = max(1, round(fraction * len(documents)))
    if count >= len(documents):
        raise UsageError(f"data.validation_fraction = {fraction} leaves nothing to train of {len(documents)} documents")
    chosen = set(np.random.default_rng(seed).permutation(len(documents))[:count].tolist())
    parts: tuple[list[Document], list[Document]] = [], []
    for index, document in enumerate(documents):
        parts[index in chosen].append(document)
    return parts
