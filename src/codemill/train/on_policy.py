"""Batches of what the student itself answers, at each step anew."""

from collections.abc import Sequence

from codemill.chat.tokenizer import Tokenizer
from codemill.data.conversations import Prompt
from codemill.data.packing import Document
from codemill.train.config import LoopConfig
from codemill.train.distill_config import DistillSection
from codemill.train.policy import Policy
from codemill.train.sampling import AnswerSampler, answer_seeds
from codemill.train.source import row_order
from codemill.train.taught_batches import TaughtBatch, TaughtDocuments


class SampledSource:
    """Each step takes `loop.rows_per_step` prompts, in an order of their own in each epoch, and has them answered.

    They depend on the step, the seed and the policy as it stands, so a resumed run gets the same. With several
    processes each answers its share, one answer a row: all have as many batches.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        context: int,
        distill: DistillSection,
        loop: LoopConfig,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.tokenizer, self.prompts, self.context = tokenizer, prompts, context
        self._sampler = AnswerSampler(policy, tokenizer, context)
        self.distill, self.loop = distill, loop
        self._share, self._packing = slice(rank, None, num_processes), num_processes == 1

    def micro_batches(self, step: int) -> list[TaughtBatch]:
        size = self.loop.rows_per_step
        draws = range(step * size, (step + 1) * size)[self._share]
        indices = row_order(len(self.prompts), self.loop.seed, step * size, size)[self._share]
        prompts = [self.prompts[index] for index in indices]
        documents = self._answered(prompts, answer_seeds(self.loop.seed, step, draws))
        teachers = [self.distill.index(prompt.domain) for prompt in prompts]
        pad_id = self.tokenizer.pad_token_id or 0
        rows = TaughtDocuments(documents, teachers, self.context, pad_id, self._packing)
        return rows.batches(range(len(rows)), self.loop.rows_per_micro_batch)

    def _answered(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Document]:
        """Prompt and answer, of which the answer counts."""
        ids = [prompt.document.ids.tolist() for prompt in prompts]
        distill = self.distill
        answers = self._sampler.answers(ids, seeds, distill.max_new_tokens, distill.temperature)
        return [
            Document.of(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer))
            for prompt, answer in zip(ids, answers, strict=True)
        ]
