"""Updates of stacked experts from an adapter's tensors, which come in two forms.

One by one, experts are modules: `mlp.experts.E.gate_proj` and so on. Stacked, they are what PEFT calls
`target_parameters`: it names the update of a parameter by the module that holds it, `mlp.experts`, and where it updates
two of them, calls one `mlp.experts.base_layer`. Which is which shows in the shapes only.

Shapes: E experts, r rank, D model, F ffn.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from codemill.errors import CodemillError
from codemill.kernels.low_rank import ExpertUpdates, LowRank
from codemill.models.lora_config import LoraConfig
from codemill.models.lora_file import StoredUpdate

_STACKED = re.compile(r"(?P<experts>.+\.experts)(\.base_layer)*")
_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<index>\d+)\.(?P<projection>gate_proj|up_proj|down_proj)")


def expert_place(module: str) -> str:
    """The name of the stacked experts that an update of `module` is for; empty if it is for none."""
    match = _EXPERT.fullmatch(module) or _STACKED.fullmatch(module)
    return "" if match is None else match["experts"]


class LayerExperts:
    """Collects the updates of one layer's experts. What updates only gate or only up is padded to both."""

    def __init__(self, name: str, num_experts: int, hidden_size: int, ffn: int) -> None:
        self._name = name
        self._shapes = {"gate_up_proj": (2 * ffn, hidden_size), "down_proj": (hidden_size, ffn)}
        self._pieces: dict[str, list[list[LowRank]]] = {key: [[] for _ in range(num_experts)] for key in self._shapes}

    @property
    def has_any(self) -> bool:
        """Whether anything was added."""
        return any(map(any, self._pieces.values()))

    def add(self, stored: StoredUpdate, settings: LoraConfig) -> None:
        """Raises CodemillError for tensors of the wrong sizes."""
        match = _EXPERT.fullmatch(stored.module)
        if match is None:
            self._add_stacked(stored, settings)
        else:
            self._add_one(stored, settings, int(match["index"]), match["projection"])

    def updates(self, to_memory: Callable[[Tensor], Tensor]) -> ExpertUpdates:
        """What was added; `to_memory` converts each tensor."""
        joined = (
            tuple(_join(pieces, to_memory) if pieces else None for pieces in each) for each in self._pieces.values()
        )
        return ExpertUpdates(*joined)

    def _add_stacked(self, stored: StoredUpdate, settings: LoraConfig) -> None:
        """a [E * r, in], expert after expert; b [out, r * E], where an expert has every E-th column."""
        key = self._stacked_parameter(stored)
        parameter, pieces = f"{self._name}.{key}", self._pieces[key]
        rank = settings.rank(parameter)
        a, b = stored.read(*self._shapes[key], rank * len(pieces))
        by_expert = b.unflatten(1, (rank, len(pieces))).permute(2, 0, 1)  # [E, out, r]
        for index, (expert_a, expert_b) in enumerate(zip(a.split(rank), by_expert, strict=True)):
            pieces[index].append(LowRank(expert_a, expert_b, settings.scale(parameter)))

    def _stacked_parameter(self, stored: StoredUpdate) -> str:
        shape = *stored.b.shape[:1], *stored.a.shape[1:]
        for key, expected in self._shapes.items():
            if shape == expected:
                return key
        raise CodemillError(
            f"{stored.a.path}: tensors {stored.a.name} and {stored.b.name} of shapes {list(stored.a.shape)} and "
            f"{list(stored.b.shape)} fit neither gate_up_proj nor down_proj of the experts"
        )

    def _add_one(self, stored: StoredUpdate, settings: LoraConfig, index: int, projection: str) -> None:
        key = "down_proj" if projection == "down_proj" else "gate_up_proj"
        if index >= len(self._pieces[key]):
            raise CodemillError(
                f"{stored.a.path}: tensor {stored.a.name} is for expert {index}, but the model has "
                f"{len(self._pieces[key])} from 0 on"
            )
        out_features, in_features = self._shapes[key]
        halves = 1 if key == "down_proj" else 2
        a, b = stored.read(out_features // halves, in_features, settings.rank(stored.module))
        if halves == 2:
            b = torch.cat((b, torch.zeros_like(b)) if projection == "gate_proj" else (torch.zeros_like(b), b))
        self._pieces[key][index].append(LowRank(a, b, settings.scale(stored.module)))


def _join(pieces: list[LowRank], to_memory: Callable[[Tensor], Tensor]) -> LowRank:
    """One update that adds what all pieces add."""
    if len(pieces) == 1:
        return LowRank(to_memory(pieces[0].a), to_memory(pieces[0].b), pieces[0].scale)
    scaled = [piece.scale * piece.b.double() for piece in pieces]  # so precisely that only `to_memory` rounds
    return LowRank(to_memory(torch.cat([piece.a for piece in pieces])), to_memory(torch.cat(scaled, dim=1)), 1.0)
