"""What a run's next steps depend on, as tensors by name.

They are `weights.*`, `optimizer.NAME.*`, `objective.*`, `rng.RANK.*` and `step`. Names are those of the parameters, so
that it does not matter how many processes hold them, or in which order.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.optim import AdamW, Optimizer

from codemill.train.muon import Muon
from codemill.train.objective import HasState, Objective

WEIGHTS = "weights."
_OPTIMIZER = "optimizer."
_OBJECTIVE = "objective."
_OPTIMIZER_KEYS = {AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum_buffer",)}


def training_state(
    step: int, trained: nn.Module, optimizers: Iterable[Optimizer], objective: Objective | None, rank: int
) -> dict[str, Tensor]:
    """The state after so many steps, as the process of this rank has it. Tensors share memory with what they are of."""
    state = {"step": torch.tensor(step), **_weights(trained), **_random_state(rank)}
    for optimizer in optimizers:
        for name, parameter in _named(trained, optimizer):
            for key, value in optimizer.state.get(parameter, {}).items():
                state[f"{_OPTIMIZER}{name}.{key}"] = value
    if isinstance(objective, HasState):
        state |= {_OBJECTIVE + name: tensor for name, tensor in objective.state().items()}
    return state


def state_to_fill(
    metadata: Metadata, trained: nn.Module, optimizers: Iterable[Optimizer], rank: int
) -> dict[str, Tensor]:
    """Tensors to read a checkpoint into: the weights themselves, and new ones for the rest of what it has.

    Raises ValueError for one of a run with other optimizers.
    """
    saved = {
        name: each for name, each in metadata.state_dict_metadata.items() if isinstance(each, TensorStorageMetadata)
    }
    known = {name: tensor for name, tensor in _random_state(rank).items() if name in saved}
    for name, each in saved.items():
        if name.startswith(_OBJECTIVE):
            known[name] = torch.zeros(each.size, dtype=each.properties.dtype)
    for optimizer in optimizers:
        known |= _empty_state(saved, trained, optimizer)
    unknown = [name for name in saved if name.startswith(_OPTIMIZER) and name not in known]
    if unknown:
        raise ValueError(f"it is of another optimizer: {unknown[0].removeprefix(_OPTIMIZER)}")
    return {"step": torch.tensor(0), **_weights(trained), **known}


def apply_state(
    state: Mapping[str, Tensor],
    trained: nn.Module,
    optimizers: Iterable[Optimizer],
    objective: Objective | None,
    rank: int,
) -> int:
    """Put what was read into place, and return the step. The weights are there already."""
    for optimizer in optimizers:
        for name, parameter in _named(trained, optimizer):
            keys = {key: f"{_OPTIMIZER}{name}.{key}" for key in _OPTIMIZER_KEYS[type(optimizer)]}
            found = {key: state[full] for key, full in keys.items() if full in state}
            if found:
                optimizer.state[parameter] = found
    remembered = {name.removeprefix(_OBJECTIVE): each for name, each in state.items() if name.startswith(_OBJECTIVE)}
    if remembered and isinstance(objective, HasState):
        objective.load_state(remembered)
    # Of more processes than the run had before, the later ones go on with the random numbers that they have.
    if (cpu := state.get(f"rng.{rank}.cpu")) is not None:
        torch.set_rng_state(cpu)
    if (cuda := state.get(f"rng.{rank}.cuda")) is not None:
        torch.cuda.set_rng_state(cuda)
    return int(state["step"])


def _weights(trained: nn.Module) -> dict[str, Tensor]:
    return {WEIGHTS + name: tensor for name, tensor in trained.state_dict().items()}


def _random_state(rank: int) -> dict[str, Tensor]:
    state = {f"rng.{rank}.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state[f"rng.{rank}.cuda"] = torch.cuda.get_rng_state()
    return state


def _empty_state(
    saved: Mapping[str, TensorStorageMetadata], trained: nn.Module, optimizer: Optimizer
) -> dict[str, Tensor]:
    """Memory for what is saved of an optimizer's state: numbers, and tensors in the form of their parameters."""
    state = {}
    for name, parameter in _named(trained, optimizer):
        for key in _OPTIMIZER_KEYS[type(optimizer)]:
            full = f"{_OPTIMIZER}{name}.{key}"
            if (metadata := saved.get(full)) is None:
                continue
            dtype = metadata.properties.dtype
            is_number = not metadata.size
            state[full] = (
                torch.zeros((), dtype=dtype, device=parameter.device)
                if is_number
                else torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            )
    return state


def _named(trained: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that the optimizer has, in the order of the module."""
    mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    yield from ((name, parameter) for name, parameter in trained.named_parameters() if id(parameter) in mine)
