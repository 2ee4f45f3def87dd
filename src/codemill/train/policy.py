"""The network that is trained: a model, or an adapter on a frozen one. Shapes: R rows, T tokens, D model, V vocab."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from codemill.kernels.experts import RoutingLog
from codemill.models import CausalLM
from codemill.models.lora import LoraAdapter, adapted_rows
from codemill.train.batch import Batch


class TrainableAdapter(nn.Module, ABC):
    """Weights that are trained in place of the model's own."""

    @property
    @abstractmethod
    def lora(self) -> LoraAdapter:
        """Its tensors as the forward pass takes them; they share memory with its parameters."""

    @abstractmethod
    def save(self, directory: Path, base: str) -> None:
        """Write it as PEFT does; `base` is the spec of the model that it is for, empty for the embedded one."""

    @property
    @abstractmethod
    def has_head(self) -> bool:
        """Whether it adapts the language model's head."""


class Policy(nn.Module):
    """With an `adapter` the model's own weights are frozen, and the adapter's are trained."""

    adapter: TrainableAdapter | None

    def __init__(self, model: CausalLM, adapter: TrainableAdapter | None = None) -> None:
        super().__init__()
        self.model = model
        self.adapter = adapter
        self._is_reference = False
        self._routing: RoutingLog | None = None

    def hidden_states(self, batch: Batch) -> Tensor:
        """Final hidden states [R, T, D]; packed documents do not see each other."""
        return self.model.hidden_states(
            batch.input_ids,
            position_ids=batch.position_ids,
            document_ids=batch.document_ids,
            adapters=self._adapters(batch.input_ids.shape[0]),
            routing=None if self._is_reference else self._routing,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [N, D] -> logits [N, V]."""
        # Called for piece after piece: an adapter that leaves the head alone is not made ready for each.
        adapters = self._adapters(1) if self.adapter is not None and self.adapter.has_head else ()
        return self.model.logits(hidden, adapted_rows(adapters, [hidden.shape[0]] * len(adapters), hidden.device))

    @property
    def trained(self) -> nn.Module:
        """What has the parameters that learn."""
        return self.model if self.adapter is None else self.adapter

    @property
    def head_weight(self) -> Tensor | None:
        """The head [V, D] that `logits` multiplies by; None where it is more than that: packed, or adapted."""
        weight = self.model.output_embedding
        is_adapted = self.adapter is not None and not self._is_reference and self.adapter.has_head
        return weight if isinstance(weight, Tensor) and not is_adapted else None

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within this, the model as it was before training: without the adapter. Only for a policy that has one."""
        assert self.adapter is not None
        self._is_reference = True
        try:
            yield
        finally:
            self._is_reference = False

    @contextmanager
    def routing(self) -> Iterator[RoutingLog]:
        """Within this, `hidden_states` notes what the routers of its first pass say, by layer."""
        self._routing = RoutingLog()
        try:
            yield self._routing
        finally:
            self._routing = None

    def _adapters(self, num_rows: int) -> Sequence[LoraAdapter]:
        if self.adapter is None or self._is_reference:
            return ()
        return [self.adapter.lora] * num_rows
