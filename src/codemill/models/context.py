"""What a forward pass knows besides the tokens; computed once, then handed to every layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from codemill.config import ModelConfig
from codemill.kernels.experts import RoutingLog
from codemill.kernels.low_rank import AdaptedRows
from codemill.kernels.paged_attention import PagedAttention, has_kernel
from codemill.kernels.segments import Segments
from codemill.kernels.token_attention import TokenAttention
from codemill.models.lora import LoraAdapter, adapted_rows
from codemill.models.rope import rotary_tables


@dataclass(frozen=True)
class ForwardContext:
    """One forward pass over `B` rows of `T` new tokens, N = B * T in all.

    `positions` are those of the tokens, one row where all rows are at the same. `segments` say which tokens
    continue which sequences of a cache; None where there is no cache. `documents` are the lengths of packed
    documents, row after row; they do not see each other. `adapters` say which tokens have one; empty where none
    does. `deferred` collects what linear-attention layers need to advance their state over drafts, once it is known
    how many were accepted. `batch_invariant`: attention gives a token the same bits in any company.
    `routing`, if it is given, is where layers with experts note what their routers said.
    """

    config: ModelConfig
    dtype: torch.dtype
    positions: Tensor  # [B or 1, T]
    documents: tuple[int, ...] = ()
    segments: Segments | None = None
    adapters: tuple[AdaptedRows, ...] = ()
    deferred: list["Deferred"] = field(default_factory=list)
    batch_invariant: bool = False
    routing: RoutingLog | None = None

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        dtype: torch.dtype,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        segments: Segments | None = None,
        adapters: Sequence[LoraAdapter | None] = (),
        batch_invariant: bool = False,
        routing: RoutingLog | None = None,
    ) -> "ForwardContext":
        """Positions of input_ids [B, T] continue where each segment ends, unless `position_ids` [B, T] says otherwise.

        A run of equal `document_ids` [B, T] is a document. `adapters`, if there are any, has one or None for each
        segment, or for each row where there are no segments.
        """
        if position_ids is None:
            position_ids = _positions(input_ids, segments)
        documents = () if document_ids is None else _document_lengths(document_ids)
        adapted = _adapted(adapters, input_ids, segments)
        return cls(
            *(config, dtype, position_ids, documents, segments, adapted),
            batch_invariant=batch_invariant,
            routing=routing,
        )

    @cached_property
    def rotary(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B or 1, T, 1, R] with R rotated dims; see `rotary_tables`."""
        return rotary_tables(self.config, self.positions, self.dtype)

    @cached_property
    def attention(self) -> PagedAttention | TokenAttention:
        """How the segments are attended; the same in every layer."""
        assert self.segments is not None
        # The kernel's results depend on a token's own keys alone; those of PyTorch's attention on what shares a call.
        has_own = has_kernel(self.dtype, self.config.head_dim, self.positions.device)
        if self.batch_invariant and not has_own:
            return TokenAttention(self.segments)
        return PagedAttention(self.segments, may_use_tiles=not self.batch_invariant)

    def for_each_document(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """function(*inputs), documents apart: each call gets [1, n, ...] of every input [B, T, ...].

        Packed documents thus compute what they would alone, and cannot see each other.
        """
        if not self.documents:
            return function(*inputs)
        # One split for all: slicing each document out would cost a full-size gradient for every slice.
        pieces = zip(*(x.flatten(0, 1)[None].split(self.documents, dim=1) for x in inputs), strict=True)
        together = torch.cat([function(*piece) for piece in pieces], dim=1)
        return together.view(*inputs[0].shape[:2], *together.shape[2:])

    def commit(self, num_accepted: list[int]) -> None:
        """Advance recurrent states over the accepted drafts, `num_accepted[i]` of segment i."""
        for deferred in self.deferred:
            if num_accepted[deferred.segment]:
                deferred.advance(num_accepted[deferred.segment])


@dataclass(frozen=True)
class Deferred:
    """A state of one layer that waits for the number of accepted drafts; `advance(n)` moves it over n of them."""

    segment: int
    advance: Callable[[int], None]


def _positions(input_ids: Tensor, segments: Segments | None) -> Tensor:
    """[B, T], or [1, T] where all rows are at the same."""
    if segments is None:
        return torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    positions = [range(segment.num_past, segment.length) for segment in segments.each]
    return torch.tensor([p for each in positions for p in each], device=input_ids.device).view(input_ids.shape)


def _adapted(
    adapters: Sequence[LoraAdapter | None], input_ids: Tensor, segments: Segments | None
) -> tuple[AdaptedRows, ...]:
    if not any(adapters):
        return ()
    rows, tokens = input_ids.shape
    counts = [tokens] * rows if segments is None else [segment.num_new for segment in segments.each]
    return adapted_rows(adapters, counts, input_ids.device)


def _document_lengths(document_ids: Tensor) -> tuple[int, ...]:
    """Lengths of the runs of equal ids in the rows of [B, T], in order; a row's end ends a run."""
    lengths: list[int] = []
    for ids in document_ids.cpu():
        lengths += ids.unique_consecutive(return_counts=True)[1].tolist()
    return tuple(lengths)
