"""LoRA adapters: small updates of a model's weights, of which each sequence of a pass may have another.

Source: Hu et al. 2021, arXiv:2106.09685; the files are those of PEFT, see `lora_file.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from codemill.config import ModelConfig
from codemill.kernels.low_rank import AdaptedRows, LowRank, Updates
from codemill.kernels.packed_matrix import PackedMatrix


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """An adapter in memory. Its fingerprint tells its contents from others': keys and values depend on the adapter."""

    name: str
    updates: Updates
    fingerprint: bytes

    @classmethod
    def load(
        cls,
        directory: Path,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        name: str | None = None,
        weights: Callable[[str], Tensor | PackedMatrix] | None = None,
    ) -> "LoraAdapter":
        """Read what PEFT saved in `directory`, as `dtype`; `config` is the model's. The name is the directory's.

        weights: gives the model's weight of a layer by its name, as `weight_of` in `dora.py` does; only DoRA needs it.
        Raises CodemillError naming the file, and the tensor or setting that cannot be applied.
        """
        from codemill.models.lora_config import LoraConfig
        from codemill.models.lora_file import fingerprint, stored_updates
        from codemill.models.lora_placement import Placement

        placement = Placement(LoraConfig.load(directory), config, dtype, torch.device(device), weights)
        for stored in stored_updates(directory, config):
            placement.add(stored)
        return cls(name or directory.resolve().name, placement.updates(), fingerprint(directory))

    @property
    def nbytes(self) -> int:
        """Memory that its tensors take."""
        return sum(each.a.nbytes + each.b.nbytes for each in _all_updates(self.updates))


def adapted_rows(
    adapters: Sequence[LoraAdapter | None], counts: Sequence[int], device: torch.device
) -> tuple[AdaptedRows, ...]:
    """The rows of each adapter, where `counts[i]` tokens with `adapters[i]` lie one sequence after the other."""
    runs: dict[LoraAdapter, list[slice]] = {}
    start = 0
    for adapter, count in zip(adapters, counts, strict=True):
        stop = start + count
        if adapter is not None and count:
            mine = runs.setdefault(adapter, [])
            # Neighbours are one run; one run is a slice, which copies no rows.
            begin = mine.pop().start if mine and mine[-1].stop == start else start
            mine.append(slice(begin, stop))
        start = stop
    return tuple(AdaptedRows(_rows(mine, device), adapter.updates) for adapter, mine in runs.items())


def _rows(runs: Sequence[slice], device: torch.device) -> slice | Tensor:
    if len(runs) == 1:
        return runs[0]
    return torch.tensor([row for run in runs for row in range(run.start, run.stop)], device=device)


def _all_updates(updates: Updates) -> Iterator[LowRank]:
    yield from updates.linears.values()
    yield from updates.embeddings.values()
    for experts in updates.experts.values():
        yield from (update for update in (*experts.gate_up, *experts.down) if update is not None)
