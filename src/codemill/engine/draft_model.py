"""A smaller model that drafts. Its KV cache has the blocks of the target's, so it needs no block manager of its own."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from codemill.engine.cache_manager import CacheManager
from codemill.engine.runner import ForwardPass
from codemill.engine.sampler import Sampler
from codemill.engine.scheduler import Step
from codemill.engine.sequence import Sequence
from codemill.kernels.segments import Segment, Segments
from codemill.models.cache import Cache
from codemill.models.context import ForwardContext
from codemill.models.decoder import CausalLM


@dataclass(frozen=True)
class Piece:
    """Tokens of one sequence for the drafting network, the first of them at position `start`."""

    sequence: Sequence
    start: int
    token_ids: list[int]


class DraftModelDrafter:
    """Drafts with a model of full attention that has the target's vocabulary.

    What the draft model computed of a block that is reused or restored may be missing; drafts then are worse, and the
    results the same.
    """

    def __init__(self, model: CausalLM, cache: Cache, manager: CacheManager) -> None:
        self._model = model
        self._cache = cache
        self._manager = manager
        self._num_computed: WeakKeyDictionary[Sequence, int] = WeakKeyDictionary()

    def follow(self, done: ForwardPass, step: Step, num_accepted: list[int]) -> None:
        """Compute the prompt tokens that the target just computed."""
        pieces = []
        for each in step.scheduled:
            start = each.sequence.cached.num_computed
            if each.num_new > 1:
                pieces.append(Piece(each.sequence, start, each.sequence.all_token_ids[start : start + each.num_new]))
        if pieces:
            self._compute(pieces)

    def propose(self, sequences: list[Sequence], counts: list[int]) -> list[list[int]]:
        counts = [fitting(self._manager, *pair) for pair in zip(sequences, counts, strict=True)]
        drafts: list[list[int]] = [[] for _ in sequences]
        for ahead in range(max(counts, default=0)):
            rows = [i for i, count in enumerate(counts) if count > ahead]
            pieces = [self._next_piece(sequences[i], drafts[i]) for i in rows]
            logits = self._model.logits(self._compute(pieces))
            for i, token_id in zip(rows, draw_drafts(logits, [sequences[i] for i in rows], ahead), strict=True):
                drafts[i].append(token_id)
        for sequence in sequences:  # the drafts may be taken back
            self._num_computed[sequence] = len(sequence.all_token_ids)
        return drafts

    def _next_piece(self, sequence: Sequence, drafts: list[int]) -> Piece:
        """First all that the target has and this model has not, then the latest draft."""
        length = len(sequence.all_token_ids)
        if drafts:
            return Piece(sequence, length + len(drafts) - 1, drafts[-1:])
        start = min(self._num_computed.get(sequence, sequence.cached.num_computed), length - 1)
        return Piece(sequence, start, sequence.all_token_ids[start:])

    def _compute(self, pieces: list[Piece]) -> Tensor:
        """Hidden states [n, D] of the last token of each piece."""
        token_ids = torch.tensor([i for piece in pieces for i in piece.token_ids], device=self._model.device)
        segments = segments_of(self._cache, [(p.sequence, p.start, len(p.token_ids)) for p in pieces])
        context = ForwardContext.build(self._model.config, self._model.dtype, token_ids[None], segments=segments)
        hidden = self._model.compute(token_ids[None], context, self._cache)[0]
        for piece in pieces:
            self._num_computed[piece.sequence] = piece.start + len(piece.token_ids)
        return hidden[last_rows(segments)]


def fitting(manager: CacheManager, sequence: Sequence, count: int) -> int:
    """As many drafts as the sequence may still use and has blocks for."""
    count = min(count, sequence.num_left - 1)
    return count if count > 0 and manager.grow(sequence, 1 + count) else 0


def draw_drafts(logits: Tensor, sequences: list[Sequence], ahead: int) -> list[int]:
    """A token for each row of logits [n, V], by the random number that the target will draw its own with.

    The two thus mostly agree where their distributions do.
    """
    sampler = Sampler(sequences, logits.shape[-1], logits.device, for_drafts=True)
    return [max(0, token.token_id) for token in sampler.sample(logits, ahead)]


def segments_of(cache: Cache, spans: list[tuple[Sequence, int, int]]) -> Segments:
    """Segments of (sequence, start, number of tokens), over the sequences' own blocks."""
    each = (Segment(count, start, sequence.cached.block_table) for sequence, start, count in spans)
    return Segments(tuple(each), cache.block_size, cache.device)


def last_rows(segments: Segments) -> list[int]:
    """Where the last token of each segment is in the flattened tokens."""
    return [start + each.num_new - 1 for start, each in zip(segments.starts, segments.each, strict=True)]
