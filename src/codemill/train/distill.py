"""Distillation: a student learns to answer as its teachers would, each in the domains that are its own.

On policy the student answers prompts itself and is told, token by token, what the teacher thinks of it (Agarwal et al.
2023, arXiv:2306.13649; Lu et al. 2025, "On-Policy Distillation"). How Qwen distilled the experts of Coder-Next into one
model is not published; this is our choice.
"""

from collections.abc import Sequence
from functools import cached_property

from codemill.chat.tokenizer import Tokenizer
from codemill.data.conversations import Prompts, load_documents, load_prompts
from codemill.data.overlong import FittedDocuments
from codemill.data.packed_documents import num_learned
from codemill.errors import UsageError
from codemill.footprint import count_parameters, quantized_bytes
from codemill.models import CausalLM
from codemill.models.loader import load_model
from codemill.models.placement import resolve_dtype, resolve_quantization
from codemill.spec import resolve
from codemill.train.batch import Batch
from codemill.train.config import LoopConfig
from codemill.train.distill_config import DistillConfig
from codemill.train.distillation import Distillation
from codemill.train.fine_tuning import Benchmark, FineTuning
from codemill.train.loop import Trainer
from codemill.train.on_policy import SampledSource
from codemill.train.policy import Policy
from codemill.train.run import DataPlan, RunPlan
from codemill.train.source import BatchSource
from codemill.train.taught_batches import TaughtDocuments, TaughtSource


class Distill(FineTuning):
    """`codemill train distill`."""

    config: DistillConfig

    def __init__(self, config: DistillConfig, benchmark: Benchmark | None = None) -> None:
        super().__init__(config, benchmark)

    def check(self) -> None:
        super().check()
        for spec in self.config.distill.specs:
            self._check_vocabulary(spec)

    @cached_property
    def prompts(self) -> Prompts:
        """What the student is to answer. Raises UsageError for a prompt without a teacher."""
        settings = self.config.data
        with self.reading(settings.train) as progress:
            prompts = load_prompts(settings.train, self.tokenizer, settings, progress)
        self.note("train", prompts.documents.counts)
        self._teachers_of(prompts.documents)
        return prompts

    @cached_property
    def rows(self) -> TaughtDocuments:
        """The answers of the data."""
        return self._pack("train", self.config.data.train)

    @property
    def loop(self) -> LoopConfig:
        return self.config.loop.for_rows(len(self.prompts if self.config.distill.on_policy else self.rows))

    def plan(self) -> RunPlan:
        self.check()
        if self.config.distill.on_policy:  # nobody knows how long the answers will be
            return self.plan_of(None, self.loop)
        documents, rows = self.rows.documents, self.rows
        return self.plan_of(DataPlan(len(documents), len(rows), rows.num_tokens, num_learned(documents)), self.loop)

    def start(self) -> Trainer:
        self.check()
        validation: dict[str, Sequence[Batch]] = {}
        with self.parallel.main_first():
            self.claim()
            loop = self.loop
            if self.config.data.validation:
                rows = self._pack("validation", self.config.data.validation)
                validation["validation"] = rows.batches(range(len(rows)), loop.rows_per_micro_batch)
        policy = self.load_policy()
        objective = Distillation(self._load_teachers(), self.config.distill)
        return Trainer(
            *(policy, objective, self._source(policy, loop), validation),
            *(loop, self.config.optimizer, self.directory),
            evaluate=self.evaluation(policy),
            parallel=self.parallel,
        )

    def _source(self, policy: Policy, loop: LoopConfig) -> BatchSource:
        if not self.config.distill.on_policy:
            return TaughtSource(self.rows, loop, *self.parallel.share_of_rows)
        context, distill = self.config.data.context, self.config.distill
        share = self.parallel.share_of_rows
        return SampledSource(policy, self.tokenizer, self.prompts, context, distill, loop, *share)

    def _load_teachers(self) -> list[CausalLM]:
        distill = self.config.distill
        packed = distill.teacher_quantization or None
        return [load_model(spec, device="auto", quantization=packed) for spec in distill.specs]

    def _pack(self, name: str, paths: Sequence[str]) -> TaughtDocuments:
        settings = self.config.data
        with self.reading(paths) as progress:
            documents = load_documents(paths, self.tokenizer, settings, progress)
        self.note(name, documents.counts)
        teachers = self._teachers_of(documents)
        pad_id = self.tokenizer.pad_token_id or 0
        return TaughtDocuments(documents, teachers, settings.context, pad_id, settings.packing)

    def _teachers_of(self, documents: FittedDocuments) -> list[int]:
        """Which teacher each document has. Raises UsageError naming the first that has none."""
        teachers = []
        for number in range(len(documents)):
            try:
                teachers.append(self.config.distill.index(documents.domain(number)))
            except UsageError as error:
                raise UsageError(f"{documents.where(number)}: {error}") from None
        return teachers

    def _memory(self, tokens: int) -> dict[str, int]:
        return {**super()._memory(tokens), "teachers": sum(map(self._teacher_bytes, self.config.distill.specs))}

    def _teacher_bytes(self, spec: str) -> int:
        config = resolve(spec).load_config()
        packed = resolve_quantization(self.config.distill.teacher_quantization or None, config.quantization)
        if packed is not None:
            return quantized_bytes(config, packed)
        return resolve_dtype(None, config).itemsize * count_parameters(config)

    def _check_vocabulary(self, spec: str) -> None:
        """Raises UsageError if a token id does not mean the same to student and teacher."""
        source, student = resolve(spec), self.source.name
        size, own_size = source.load_config().vocab_size, self.model_config.vocab_size
        if size != own_size:
            raise UsageError(
                f"{source.name} has {size:,} tokens, {student} {own_size:,}: a teacher must share the student's "
                "vocabulary"
            )
        own, theirs = self.tokenizer, Tokenizer.load(spec)
        for token_id in range(own.vocab_size):
            if theirs.id_to_token(token_id) != own.id_to_token(token_id):
                raise UsageError(
                    f"token {token_id} is {theirs.id_to_token(token_id)!r} to {source.name} and "
                    f"{own.id_to_token(token_id)!r} to {student}: a teacher must share the student's vocabulary"
                )
