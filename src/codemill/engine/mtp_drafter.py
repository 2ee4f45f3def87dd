"""Drafts by the checkpoint's own multi-token prediction head. Shapes: n sequences, D model."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from codemill.engine.cache_manager import CacheManager
from codemill.engine.draft_model import draw_drafts, fitting, last_rows, segments_of
from codemill.engine.runner import ForwardPass
from codemill.engine.scheduler import Step
from codemill.engine.sequence import Sequence
from codemill.models.cache import Cache
from codemill.models.context import ForwardContext
from codemill.models.decoder import CausalLM
from codemill.models.mtp import MtpHead


class MtpDrafter:
    """The head sees each hidden state of the target with the token that came next, and predicts the one after.

    Its KV cache has the blocks of the target's; the pair of position p lies in slot p. Drafts beyond the first are made
    of the head's own hidden states, which the target's replace once they are known.
    """

    def __init__(self, head: MtpHead, model: CausalLM, cache: Cache, manager: CacheManager) -> None:
        self._head = head
        self._model = model
        self._cache = cache
        self._manager = manager
        self._latest: WeakKeyDictionary[Sequence, Tensor] = WeakKeyDictionary()

    def follow(self, done: ForwardPass, step: Step, num_accepted: list[int]) -> None:
        """Feed the head the pass: each hidden state whose next token is known by now."""
        spans: list[tuple[Sequence, int, int]] = []
        rows: list[int] = []
        next_ids: list[int] = []
        for first, each, accepted in zip(done.rows, step.scheduled, num_accepted, strict=True):
            sequence, start = each.sequence, each.sequence.cached.num_computed
            count = min(each.num_new + accepted, len(sequence.all_token_ids) - 1 - start)
            if count > 0:
                spans.append((sequence, start, count))
                rows += range(first, first + count)
                next_ids += sequence.all_token_ids[start + 1 : start + 1 + count]
        if spans:
            latest = self._compute(next_ids, done.hidden[rows], spans)
            self._latest.update(zip((sequence for sequence, _, _ in spans), latest, strict=True))

    def propose(self, sequences: list[Sequence], counts: list[int]) -> list[list[int]]:
        counts = [
            fitting(self._manager, sequence, count) if sequence in self._latest else 0
            for sequence, count in zip(sequences, counts, strict=True)
        ]
        drafts: list[list[int]] = [[] for _ in sequences]
        hidden = {i: self._latest[sequences[i]] for i, count in enumerate(counts) if count}
        for ahead in range(max(counts, default=0)):
            rows = [i for i, count in enumerate(counts) if count > ahead]
            if ahead:  # the pair of the last draft's hidden state and the draft itself
                spans = [(sequences[i], len(sequences[i].all_token_ids) + ahead - 2, 1) for i in rows]
                states = torch.stack([hidden[i] for i in rows])
                hidden = dict(zip(rows, self._compute([drafts[i][-1] for i in rows], states, spans), strict=True))
            logits = self._model.logits(torch.stack([hidden[i] for i in rows]))
            for i, token_id in zip(rows, draw_drafts(logits, [sequences[i] for i in rows], ahead), strict=True):
                drafts[i].append(token_id)
        return drafts

    def _compute(self, next_ids: list[int], hidden: Tensor, spans: list[tuple[Sequence, int, int]]) -> Tensor:
        """The head's hidden states [n, D] at the end of each span, given the target's [sum of spans, D]."""
        ids = torch.tensor([next_ids], device=self._model.device)
        segments = segments_of(self._cache, spans)
        context = ForwardContext.build(self._head.config, self._model.dtype, ids, segments=segments)
        out = self._head(ids, hidden[None], self._model, context, self._cache.kv_caches[0])[0]
        return out[last_rows(segments)]
