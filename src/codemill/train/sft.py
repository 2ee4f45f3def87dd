"""Supervised fine-tuning: conversations, packed, and cross entropy on what the assistant said."""

from collections.abc import Sequence
from functools import cached_property

from codemill.data.conversations import load_documents
from codemill.data.held_out import split_held_out
from codemill.data.packed_documents import PackedDocuments
from codemill.data.packing import Document
from codemill.errors import UsageError
from codemill.train.config import LoopConfig
from codemill.train.fine_tuning import FineTuning
from codemill.train.loop import Trainer
from codemill.train.objective import CrossEntropy
from codemill.train.run import DataPlan, RunPlan
from codemill.train.source import PackedSource, validation_batches


class Sft(FineTuning):
    """`codemill train sft`."""

    @cached_property
    def documents(self) -> tuple[Sequence[Document], Sequence[Document]]:
        """To train on, and to validate with. Raises UsageError and CodemillError naming the record that is wrong."""
        settings = self.config.data
        documents = load_documents(settings.train, self.tokenizer, settings)
        if settings.validation:
            return documents, load_documents(settings.validation, self.tokenizer, settings)
        if not settings.validation_fraction:
            return documents, ()
        train, held_out = split_held_out(documents, settings.validation_fraction, self.config.loop.seed)
        if not train or not held_out:
            raise UsageError(
                f"data.validation_fraction = {settings.validation_fraction} of {len(documents):,} documents leaves "
                "nothing on one side: give more data, or data.validation"
            )
        return train, held_out

    @cached_property
    def rows(self) -> PackedDocuments:
        return self._pack(self.documents[0])

    @property
    def loop(self) -> LoopConfig:
        return self.config.loop.for_rows(len(self.rows))

    def plan(self) -> RunPlan:
        self.check()
        documents = self.documents[0]
        learned = sum(int((document.weights[1:] != 0).sum()) for document in documents)
        data = DataPlan(len(documents), len(self.rows), self.rows.num_tokens, learned)
        return self.plan_of(data, self.loop)

    def start(self) -> Trainer:
        self.check()
        with self.parallel.main_first():
            self.claim()
            loop, held_out = self.loop, self.documents[1]
        policy = self.load_policy()
        validation = {"validation": validation_batches(self._pack(held_out), loop)} if held_out else {}
        return Trainer(
            *(policy, CrossEntropy(), PackedSource(self.rows, loop, *self.parallel.share_of_rows), validation),
            *(loop, self.config.optimizer, self.directory),
            evaluate=self.evaluation(policy),
            parallel=self.parallel,
        )

    def _pack(self, documents: Sequence[Document]) -> PackedDocuments:
        settings = self.config.data
        return PackedDocuments(documents, settings.context, self.tokenizer.pad_token_id or 0, settings.packing)
