"""Chooses the next token of every row of a batch, each by its own parameters. Shapes: B rows, V vocabulary."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from codemill.engine.filters import Filters, draw_filtered, draw_unfiltered
from codemill.engine.penalties import Penalties
from codemill.engine.sequence import SampledToken, Sequence
from codemill.errors import CodemillError


@dataclass(frozen=True)
class RowGroup:
    """Rows that are drawn in one way: all with top-k, all with other filters, or all with none."""

    rows: list[int]
    filters: Filters
    filtered: bool

    def draw(self, logits: Tensor, sequences: SequenceOf[Sequence]) -> Tensor:
        """Token ids for these rows out of logits fp32 [B, V]; one random number from each row's own generator."""
        numbers = [sequences[row].random.random() for row in self.rows]
        uniforms = torch.tensor(numbers, dtype=torch.float64, device=logits.device)[:, None]
        mine = logits if len(self.rows) == len(sequences) else logits[self.rows]
        if self.filtered:
            return draw_filtered(mine, self.filters, uniforms)
        return draw_unfiltered(mine, self.filters.temperature, uniforms)


class Sampler:
    """Samples for a fixed list of sequences; make another when the batch changes.

    Order: penalties, bias and bans, then greedy choice, or temperature, top-k, top-p, min-p and a draw. A row's
    result does not depend on the others. Log-probabilities are those of the logits as they came.
    """

    def __init__(self, sequences: SequenceOf[Sequence], vocab_size: int, device: torch.device) -> None:
        self._sequences = sequences
        self._device = device
        self._penalties = Penalties(sequences, vocab_size, device) if Penalties.are_wanted(sequences) else None
        self._groups = _group_rows(sequences, device)
        self._bias = _bias(sequences, device)
        self._may_ban = any(sequence.banned_ids for sequence in sequences)
        self._logprob_rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]

    def sample(self, logits: Tensor) -> tuple[Tensor, list[SampledToken]]:
        """Logits [B, V] of any float dtype -> token ids [B] on their device, and the same for the host.

        Raises CodemillError naming the step if a row's logits are NaN or infinite.
        """
        shaped = self._shape(logits)
        likeliest, tokens = shaped.max(dim=-1)
        for group in self._groups:
            tokens[group.rows] = group.draw(shaped, self._sequences)
        # A mark among the ids, so that the check needs no transfer of its own.
        token_ids = torch.where(likeliest.isfinite(), tokens, -1).tolist()
        self._check(token_ids)
        if self._penalties is not None:
            self._penalties.record(tokens)
        return tokens, self._with_logprobs(logits, tokens, token_ids)

    def _shape(self, logits: Tensor) -> Tensor:
        """Penalties, bias and bans; a batch that only wants the largest logit keeps its dtype."""
        if self._groups or self._penalties is not None or self._bias is not None:
            logits = logits.float()
        if self._penalties is not None:
            logits = self._penalties.apply(logits)
        if self._bias is not None:
            places, values = self._bias
            logits = logits.index_put(places, values, accumulate=True)
        return self._ban(logits) if self._may_ban else logits

    def _ban(self, logits: Tensor) -> Tensor:
        pairs = [(row, i) for row, sequence in enumerate(self._sequences) for i in sequence.banned_ids]
        self._may_ban = bool(pairs)
        if not pairs:
            return logits
        return logits.index_put(_places(pairs, self._device), logits.new_tensor(float("-inf")))

    def _check(self, token_ids: list[int]) -> None:
        if -1 in token_ids:
            step = len(self._sequences[token_ids.index(-1)].token_ids) + 1
            raise CodemillError(
                f"the model produced NaN or infinite logits at output token {step}: "
                "check the weights, or try dtype='float32'"
            )

    def _with_logprobs(self, logits: Tensor, tokens: Tensor, token_ids: list[int]) -> list[SampledToken]:
        sampled = [SampledToken(token_id) for token_id in token_ids]
        rows = self._logprob_rows
        if not rows:
            return sampled
        logprobs = logits[rows].float().log_softmax(dim=-1)
        chosen = logprobs.gather(1, tokens[rows, None])[:, 0].tolist()
        wanted = [self._sequences[row].params.logprobs or 0 for row in rows]
        values, ids = (part.tolist() for part in logprobs.topk(min(max(wanted), logits.shape[-1])))
        for i, row in enumerate(rows):
            top = dict(zip(ids[i][: wanted[i]], values[i][: wanted[i]], strict=True))
            sampled[row] = SampledToken(token_ids[row], chosen[i], top)
        return sampled


def _group_rows(sequences: SequenceOf[Sequence], device: torch.device) -> list[RowGroup]:
    """Greedy rows are in no group."""
    drawn = [row for row, sequence in enumerate(sequences) if not sequence.distribution.is_greedy]
    groups = []
    for filtered, has_top_k in ((True, True), (True, False), (False, False)):
        kind = (filtered, has_top_k)
        rows = [row for row in drawn if _kind(sequences[row]) == kind]
        if rows:
            filters = Filters.build([sequences[row].distribution for row in rows], device)
            groups.append(RowGroup(rows, filters, filtered))
    return groups


def _kind(sequence: Sequence) -> tuple[bool, bool]:
    return sequence.distribution.is_filtered, sequence.distribution.top_k > 0


def _bias(sequences: SequenceOf[Sequence], device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor] | None:
    """Where in [B, V] something is added, and what."""
    entries = {
        (row, token_id): value
        for row, sequence in enumerate(sequences)
        for token_id, value in (sequence.params.logit_bias or {}).items()
    }
    if not entries:
        return None
    return _places(list(entries), device), torch.tensor(list(entries.values()), dtype=torch.float32, device=device)


def _places(pairs: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tensor(pairs, dtype=torch.long, device=device).T
    return rows, columns
