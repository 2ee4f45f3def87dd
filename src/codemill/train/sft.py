"""Supervised fine-tuning: conversations, packed, and cross entropy on what the assistant said."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from codemill.data.conversations import load_documents
from codemill.data.held_out import split_held_out
from codemill.data.overlong import FittedDocuments
from codemill.data.packed_directory import PackedDirectory, counts_of
from codemill.data.packed_documents import PackedDocuments, document_lengths, num_learned
from codemill.data.packing import Document
from codemill.errors import UsageError
from codemill.train.config import LoopConfig
from codemill.train.fine_tuning import FineTuning
from codemill.train.loop import Trainer
from codemill.train.objective import CrossEntropy
from codemill.train.run import DataPlan, RunPlan
from codemill.train.source import PackedSource, Rows, validation_batches


class Sft(FineTuning):
    """`codemill train sft`."""

    @property
    def packed(self) -> PackedDirectory | None:
        """What `codemill data pack` made, if that is the data."""
        first, *others = self.config.data.train
        directory = PackedDirectory(Path(first))
        return None if others or not directory.is_there else directory

    @cached_property
    def documents(self) -> tuple[Sequence[Document], Sequence[Document]]:
        """To train on, and to validate with. Raises UsageError and CodemillError naming the record that is wrong."""
        settings = self.config.data
        held_out: Sequence[Document] = ()
        if settings.validation:
            held_out = self._load("validation", settings.validation)
        if self.packed is not None:
            return (), held_out
        documents = self._load("train", settings.train)
        if held_out:
            return documents, held_out
        if not settings.validation_fraction:
            return documents, ()
        train, held_out = split_held_out(documents, settings.validation_fraction, self.config.loop.seed)
        if not train or not held_out:
            raise UsageError(
                f"data.validation_fraction = {settings.validation_fraction} of {len(documents):,} documents leaves "
                "nothing on one side: give more data, or data.validation"
            )
        return train, held_out

    def _load(self, name: str, paths: Sequence[str]) -> FittedDocuments:
        with self.reading(paths) as progress:
            documents = load_documents(paths, self.tokenizer, self.config.data, progress)
        self.note(name, documents.counts)
        return documents

    @cached_property
    def rows(self) -> Rows:
        """To train on. Raises UsageError for packed data that does not go with the model or the settings."""
        if self.packed is None:
            return self._pack(self.documents[0])
        rows, settings = self.packed.rows(self.tokenizer), self.config.data
        self.note("train", counts_of(self.packed.info))
        if rows.input_ids.shape[1] != settings.context or settings.validation_fraction:
            raise UsageError(
                f"{self.packed.path} was packed in rows of {rows.input_ids.shape[1]}: set data.context to that, and "
                "validate with data.validation"
            )
        return rows

    @property
    def loop(self) -> LoopConfig:
        return self.config.loop.for_rows(len(self.rows))

    def plan(self) -> RunPlan:
        self.check()
        return self.plan_of(self._data_plan(), self.loop)

    def _data_plan(self) -> DataPlan:
        if self.packed is not None:
            info = self.packed.info
            return DataPlan(info["documents"], len(self.rows), info["tokens"], info["learned_tokens"])
        documents = self.documents[0]
        tokens = int(document_lengths(documents).sum())
        return DataPlan(len(documents), len(self.rows), tokens, num_learned(documents))

    def start(self) -> Trainer:
        self.check()
        with self.parallel.main_first():
            self.claim()
            loop, held_out = self.loop, self.documents[1]
        policy = self.load_policy()
        validation = {"validation": validation_batches(self._pack(held_out), loop)} if held_out else {}
        return Trainer(
            *(
                policy,
                self.balanced(CrossEntropy()),
                PackedSource(self.rows, loop, *self.parallel.share_of_rows),
                validation,
            ),
            *(loop, self.config.optimizer, self.directory),
            evaluate=self.evaluation(policy),
            parallel=self.parallel,
        )

    def _pack(self, documents: Sequence[Document]) -> PackedDocuments:
        settings = self.config.data
        return PackedDocuments(documents, settings.context, self.tokenizer.pad_token_id or 0, settings.packing)
