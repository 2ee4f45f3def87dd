"""Chooses the next token of every row of a batch, each by its own parameters. Shapes: B rows, V vocabulary."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from codemill.engine.filters import Filters, draw_filtered, draw_unfiltered
from codemill.engine.no_token import why_no_token
from codemill.engine.noise import as_keys
from codemill.engine.penalties import Penalties, has_penalty
from codemill.engine.sequence import SampledToken, Sequence
from codemill.engine.token_mask import GrammarAnswers, ask_grammars, unpack
from codemill.errors import CodemillError

NO_TOKEN = -1
"""Stands for the token of a row that has none, because its logits are NaN or nothing is allowed."""


@dataclass(frozen=True)
class RowGroup:
    """Rows that are drawn in one way: with the same top-k, with other filters, or without any."""

    rows: list[int]
    filters: Filters
    filtered: bool

    def draw(self, logits: Tensor, sequences: SequenceOf[Sequence], ahead: int) -> Tensor:
        """Token ids for these rows out of logits fp32 [B, V], each by its sequence's own noise."""
        keys = as_keys([sequences[row].noise_key(ahead) for row in self.rows], logits.device)
        mine = logits if len(self.rows) == len(sequences) else logits[self.rows]
        if self.filtered:
            return draw_filtered(mine, self.filters, keys)
        return draw_unfiltered(mine, self.filters.temperature, keys)


class Sampler:
    """Samples for a fixed list of sequences; make another when the list changes.

    Order: penalties, bias, bans and grammar, then greedy choice, or temperature, top-k, top-p, min-p and a draw. Given
    its logits, a row's token does not depend on the other rows: every operation works row by row, and the noise is the
    sequence's own. Log-probabilities are those of the logits as they came.

    for_drafts: the tokens are guesses, for which grammars and log-probabilities do not count.
    """

    def __init__(
        self, sequences: SequenceOf[Sequence], vocab_size: int, device: torch.device, for_drafts: bool = False
    ) -> None:
        self._sequences = sequences
        self._vocab_size = vocab_size
        self._device = device
        self._penalties = Penalties(sequences, device) if any(map(has_penalty, sequences)) else None
        self._groups = _group_rows(sequences, device)
        self._bias = _bias(sequences, device)
        self._may_ban = any(sequence.banned_ids for sequence in sequences)
        strict = [] if for_drafts else list(enumerate(sequences))
        self._grammars = {row: sequence.grammar for row, sequence in strict if sequence.grammar is not None}
        self._logprob_rows = [row for row, sequence in strict if sequence.wants_logprobs]

    def sample(self, logits: Tensor, ahead: int = 0) -> list[SampledToken]:
        """Logits [B, V] of any float dtype -> a token for each row; NO_TOKEN and an error where there can be none.

        ahead: how many tokens after the sequences' next one these logits are for, where that is a guess.
        """
        answers = ask_grammars(self._grammars, self._vocab_size)
        shaped = self._obey_grammars(self._shape(logits), answers)
        likeliest, tokens = shaped.max(dim=-1)
        for group in self._groups:
            tokens[group.rows] = group.draw(shaped, self._sequences, ahead)
        # A mark among the ids, so that the check needs no transfer of its own.
        token_ids = torch.where(likeliest.isfinite(), tokens, NO_TOKEN).tolist()
        for row, token_id in answers.forced.items():
            token_ids[row] = token_id
        for row in answers.errors:
            token_ids[row] = NO_TOKEN
        sampled = self._with_logprobs(logits, token_ids)
        for row, token_id in enumerate(token_ids):
            if token_id == NO_TOKEN:
                error = answers.errors.get(row) or self._why_none(row, logits, likeliest)
                sampled[row] = SampledToken(NO_TOKEN, error=error)
        return sampled

    def _why_none(self, row: int, logits: Tensor, likeliest: Tensor) -> CodemillError:
        return why_no_token(self._sequences[row], logits[row].max().item(), likeliest[row].item())

    def _shape(self, logits: Tensor) -> Tensor:
        """Penalties, bias and bans; a batch that only wants the largest logit keeps its dtype."""
        if self._groups or self._penalties is not None or self._bias is not None:
            logits = logits.float()
        if self._penalties is not None:
            logits = self._penalties.apply(logits)
        if self._bias is not None:
            places, values = self._bias
            logits = logits.index_put(places, values, accumulate=True)
        if self._may_ban:
            logits = self._ban(logits)
        return logits

    def _ban(self, logits: Tensor) -> Tensor:
        pairs = [(row, i) for row, sequence in enumerate(self._sequences) for i in sequence.banned_ids]
        self._may_ban = bool(pairs)
        if not pairs:
            return logits
        return logits.index_put(_places(pairs, self._device), logits.new_tensor(float("-inf")))

    def _obey_grammars(self, logits: Tensor, answers: GrammarAnswers) -> Tensor:
        """-inf for what the grammars do not allow next; a row whose next token is forced stays as it is."""
        if not answers.choosing:
            return logits
        allowed = unpack(answers.masks, self._vocab_size, self._device)
        masked = logits[answers.choosing].masked_fill(~allowed, float("-inf"))
        return logits.index_put((torch.tensor(answers.choosing, device=self._device),), masked)

    def _with_logprobs(self, logits: Tensor, token_ids: list[int]) -> list[SampledToken]:
        sampled = [SampledToken(token_id) for token_id in token_ids]
        rows = [row for row in self._logprob_rows if token_ids[row] != NO_TOKEN]
        if not rows:
            return sampled
        logprobs = logits[rows].float().log_softmax(dim=-1)
        wanted = [self._sequences[row].params.logprobs or 0 for row in rows]
        chosen = logprobs.gather(1, torch.tensor([[token_ids[row]] for row in rows], device=self._device))
        tops = top_logprobs(logprobs, wanted)
        for row, logprob, top in zip(rows, chosen[:, 0].tolist(), tops, strict=True):
            sampled[row] = SampledToken(token_ids[row], logprob, top)
        return sampled


def top_logprobs(logprobs: Tensor, wanted: list[int]) -> list[dict[int, float]]:
    """The likeliest ids of each row of log-probabilities [B, V], `wanted[b]` of row b, best first."""
    values, ids = (part.tolist() for part in logprobs.topk(min(max(wanted), logprobs.shape[-1])))
    return [dict(zip(ids[i][:count], values[i][:count], strict=True)) for i, count in enumerate(wanted)]


def _group_rows(sequences: SequenceOf[Sequence], device: torch.device) -> list[RowGroup]:
    """Greedy rows are in no group."""
    kinds: dict[tuple[bool, int], list[int]] = {}
    for row, sequence in enumerate(sequences):
        distribution = sequence.distribution
        if not distribution.is_greedy:
            kinds.setdefault((distribution.is_filtered, distribution.top_k), []).append(row)
    return [
        RowGroup(rows, Filters.build([sequences[row].distribution for row in rows], device), filtered)
        for (filtered, _), rows in kinds.items()
    ]


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
