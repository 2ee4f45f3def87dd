"""The plain loop: a batch of sequences over one KV cache, a token each per step. Shapes: B rows, T tokens, D model."""

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from codemill.engine.cache_rows import allocate_rows, grow_capacity, keep_rows, kv_bytes_per_token, repeat_rows
from codemill.engine.sampler import Sampler
from codemill.engine.sequence import Sequence
from codemill.models.cache import Cache
from codemill.models.decoder import CausalLM

PREFILL_TOKENS = 2048  # tokens of all rows in one pass: bounds the memory of activations
FIRST_ROOM = 256  # tokens of output that the cache has room for at first; it doubles when full
MAX_ROWS = 16
MAX_CACHE_BYTES = 2 << 30


class Batch:
    """Sequences that are generated together. `step` gives each one more token; finished ones leave."""

    def __init__(self, model: CausalLM, sequences: Iterable[Sequence]) -> None:
        self._model = model
        self.sequences = list(sequences)
        self._cache: Cache | None = None
        self._tokens = torch.empty(0)
        self._sampler = self._new_sampler()

    # Not a context around the caller's loop: a stream hands control back between steps, outside inference mode.
    @torch.inference_mode()
    def step(self) -> None:
        """Prefill if this is the first step, else decode; then sample. Raises CodemillError for NaN logits."""
        logits = self._prefill() if self._cache is None else self._decode(self._cache)
        self._tokens, sampled = self._sampler.sample(logits)
        for sequence, token in zip(self.sequences, sampled, strict=True):
            sequence.append(token)
        self._drop_finished()

    def run(self) -> None:
        """Step until every sequence has finished."""
        while self.sequences:
            self.step()

    def _prefill(self) -> Tensor:
        """Logits [B, vocab] of the last prompt tokens; equal prompts are computed once."""
        numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(s.prompt_token_ids for s in self.sequences))}
        rows = [numbers[sequence.prompt_token_ids] for sequence in self.sequences]
        longest = max(map(len, numbers))
        capacity = min(longest + FIRST_ROOM, self._max_length())
        cache = allocate_rows(self._model.config, len(numbers), capacity, self._model.dtype, self._model.device)
        hidden = prefill(self._model, list(numbers), cache)
        if len(rows) > len(numbers):
            cache, hidden = repeat_rows(cache, rows), hidden[rows]
        self._cache = cache
        return self._model.logits(hidden)

    def _decode(self, cache: Cache) -> Tensor:
        """Logits [B, vocab] after one more token in each row."""
        if max(cache.lengths) == cache.capacity:
            cache = self._cache = grow_capacity(cache, min(2 * cache.capacity, self._max_length()))
        return self._model.logits(self._model.hidden_states(self._tokens[:, None], cache)[:, -1])

    def _drop_finished(self) -> None:
        rows = [row for row, sequence in enumerate(self.sequences) if sequence.finish_reason is None]
        if len(rows) == len(self.sequences):
            return
        if not rows or self._cache is None:
            self.sequences, self._cache = [], None
            return
        self._cache, order = keep_rows(self._cache, rows)
        self.sequences = [self.sequences[row] for row in order]
        self._tokens = self._tokens[order]
        self._sampler = self._new_sampler()

    def _new_sampler(self) -> Sampler:
        return Sampler(self.sequences, self._model.config.vocab_size, self._model.device)

    def _max_length(self) -> int:
        return max(sequence.max_length for sequence in self.sequences)


def prefill(model: CausalLM, prompts: SequenceOf[SequenceOf[int]], cache: Cache) -> Tensor:
    """Feed the prompts to the empty rows of `cache`, in chunks -> hidden states of their last tokens [B, D]."""
    lengths = [len(prompt) for prompt in prompts]
    input_ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, : len(prompt)] = torch.tensor(prompt)
    input_ids = input_ids.to(model.device)
    last = torch.empty(len(prompts), model.config.hidden_size, dtype=model.dtype, device=model.device)
    width = max(1, PREFILL_TOKENS // len(prompts))
    for start in range(0, max(lengths), width):
        chunk = input_ids[:, start : start + width]
        real = [min(max(length - start, 0), chunk.shape[1]) for length in lengths]
        hidden = model.hidden_states(chunk, cache, real)
        for row, length in enumerate(lengths):
            if start < length <= start + width:
                last[row] = hidden[row, length - start - 1]
    return last


def plan_batches(model: CausalLM, sequences: SequenceOf[Sequence]) -> list[list[Sequence]]:
    """Split into batches of at most 16 rows whose caches stay under 2 GiB; prompts of similar length together."""
    max_tokens = MAX_CACHE_BYTES // max(1, kv_bytes_per_token(model.config, model.dtype))
    batches: list[list[Sequence]] = []
    for sequence in sorted(sequences, key=lambda s: len(s.prompt_token_ids), reverse=True):
        batch = batches[-1] if batches else []
        longest = max(s.max_length for s in [*batch, sequence])
        if batch and len(batch) < MAX_ROWS and longest * (len(batch) + 1) <= max_tokens:
            batch.append(sequence)
        else:
            batches.append([sequence])
    return batches
