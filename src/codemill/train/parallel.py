"""The processes that train one policy together. One process alone is the plain case, and needs none of torchrun."""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from codemill.errors import CodemillError, UsageError
from codemill.train.config import LoopConfig
from codemill.train.parallel_config import ParallelConfig
from codemill.train.policy import Policy

DATA, TENSOR, EXPERT = "data", "tensor", "expert"  # the mesh's dimensions; the last two are never both above 1
ROWS = "rows"  # DATA and EXPERT as one: the processes that read rows of their own
Value = TypeVar("Value")
_LOST_CONNECTION = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe", re.IGNORECASE)


class Parallel:
    """One process, which does all of it; and what `Processes` does in its place.

    `rank` of `num_processes`. It reads share `data_rank` of `num_shares` of each step's rows.
    """

    config = ParallelConfig()
    rank, num_processes = 0, 1
    data_rank, num_shares = 0, 1

    @property
    def share_of_rows(self) -> tuple[int, int]:
        """Which share of each step's rows this process reads, and of how many."""
        return self.data_rank, self.num_shares

    @property
    def is_main(self) -> bool:
        """Whether this process writes the logs and the model."""
        return self.rank == 0

    def wrap(self, policy: Policy, precision: str) -> None:
        """Leave of the policy, in place, what this process has to keep. A second call for the same one does nothing.

        precision: of matrix products, "float32" or "bfloat16".
        """

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over all shares of the data; every process gets them."""
        return dict(values)

    def reshard(self, policy: Policy) -> None:
        """Give up what a pass without gradients has put together of a policy that is to be trained."""

    def gather(self, value: Value | None) -> list[Value]:
        """Those of all shares of the data but None, in their order."""
        return [] if value is None else [value]

    def of_main(self, value: Value) -> Value:
        """The main process's."""
        return value

    def add_up(self, x: Tensor) -> None:
        """Leave in x its sum over all shares of the data."""

    def largest(self, value: int) -> int:
        """Of the values of all processes."""
        return value

    def check_equal(self, name: str, value: int) -> None:
        """Raises CodemillError on every process if `value` differs among them: they would wait for each other."""

    def sum_gradients(self, trained: nn.Module) -> None:
        """Leave in every gradient what all shares of the data contribute to it."""

    def share(self, items: Sequence[Value]) -> list[tuple[Value, bool]]:
        """This process's part of `items`, equally many on all; False for one that another process counts."""
        return [(item, True) for item in items]

    def wait(self) -> None:
        """Until all processes are here."""

    def leave(self) -> None:
        """End this process's part, when all is done."""

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block before the others: it makes files that they find."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def check_rows(self, loop: LoopConfig) -> None:
        """Raises UsageError if not all processes get equally many micro-batches of a step."""
        self.config.check_rows(loop.rows_per_step, loop.rows_per_micro_batch, self.num_processes)


class Processes(Parallel):
    """The processes of a process group. They have the same policy before `wrap`, and the same seed."""

    def __init__(self, config: ParallelConfig, device_type: str = "cpu", owns_group: bool = False) -> None:
        """owns_group: `leave` ends it. Raises UsageError if the group has another size than `config` says."""
        self.config, self._owns_group = config, owns_group
        self.rank, self.num_processes = dist.get_rank(), dist.get_world_size()
        groups = config.groups(self.num_processes)
        if config.expert > 1:
            self.mesh = init_device_mesh(device_type, (groups, config.expert), mesh_dim_names=(DATA, EXPERT))
            self.rows: DeviceMesh = self.mesh[DATA, EXPERT]._flatten(ROWS)
        else:
            self.mesh = init_device_mesh(device_type, (groups, config.tensor), mesh_dim_names=(DATA, TENSOR))
            self.rows = self.mesh[DATA]
        self.data_rank, self.num_shares = self.rows.get_local_rank(), self.rows.size()
        self._wrapped = WeakSet[Policy]()
        self._patient = dist.new_group(backend="gloo", timeout=timedelta(days=30))
        # It warns on every process that putting together what two dimensions cut takes two steps.
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)

    def wrap(self, policy: Policy, precision: str) -> None:
        """Raises UsageError for a policy that cannot be cut as the configuration says."""
        from codemill.train.parallel_model import split_policy

        if policy not in self._wrapped:
            split_policy(policy, self.config, self.mesh, self.rows, precision)
            self._wrapped.add(policy)

    def reshard(self, policy: Policy) -> None:
        from codemill.train.parallel_model import reshard

        reshard(policy)

    def gather(self, value: Value | None) -> list[Value]:
        gathered: list[Value | None] = [value] * self.num_shares
        dist.all_gather_object(gathered, value, group=self.rows.get_group())
        return [each for each in gathered if each is not None]

    def of_main(self, value: Value) -> Value:
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """In the order of the shares, so that all have the same bits."""
        gathered = self.gather(dict(values))
        names = dict.fromkeys(name for each in gathered for name in each)
        return {name: sum(each.get(name, 0.0) for each in gathered) for name in names}

    def add_up(self, x: Tensor) -> None:
        dist.all_reduce(x, group=self.rows.get_group())

    def largest(self, value: int) -> int:
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def check_equal(self, name: str, value: int) -> None:
        values = [0] * self.num_processes
        dist.all_gather_object(values, value)
        if len(set(values)) > 1:
            raise CodemillError(f"the processes have {name} {values}, and must have equally many")

    def sum_gradients(self, trained: nn.Module) -> None:
        """Those of weights in shards come summed from FSDP, over the processes that share them."""
        parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        for parameter, has_gradient in zip(parameters, self._have_gradients(parameters), strict=True):
            if not has_gradient:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if isinstance(parameter, DTensor):
                assert isinstance(parameter.grad, DTensor)
                # A norm of heads that are apart, for one: each process has what its heads contribute.
                parameter.grad = parameter.grad.redistribute(placements=parameter.placements)
            self._add_up(parameter)

    def _have_gradients(self, parameters: Sequence[Tensor]) -> list[bool]:
        """Of each parameter, whether any process has a gradient. An expert may have got no token on some."""
        flags = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return [bool(flag) for flag in flags.tolist()]

    def _add_up(self, parameter: Tensor) -> None:
        """Over those of the processes with rows of their own that have the same part of the parameter."""
        assert parameter.grad is not None
        if not isinstance(parameter, DTensor):
            mesh = self.rows
        elif DATA in (names := parameter.device_mesh.mesh_dim_names or ()) or ROWS in names:
            return  # FSDP
        else:
            mesh = self.mesh[DATA]
        gradient = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
        if mesh.size() > 1:
            dist.all_reduce(gradient, group=mesh.get_group())

    def share(self, items: Sequence[Value]) -> list[tuple[Value, bool]]:
        places = range(self.data_rank, -(-len(items) // self.num_shares) * self.num_shares, self.num_shares)
        return [(items[min(place, len(items) - 1)], place < len(items)) for place in places]

    def wait(self) -> None:
        """For as long as it takes: the main process may be making data. One that ends is noticed at once."""
        dist.all_reduce(torch.zeros(1), group=self._patient)

    def leave(self) -> None:
        if self._owns_group:
            dist.destroy_process_group()


def join(config: ParallelConfig) -> Parallel:
    """This process's part in the run: with those that `torchrun` started beside it, or alone.

    Raises UsageError if they are not as many as `config` asks for.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    config.groups(num_processes)
    if num_processes == 1:
        return Parallel()
    is_new = not dist.is_initialized()
    if is_new:
        _init_process_group()
    return Processes(config, "cuda" if torch.cuda.is_available() else "cpu", owns_group=is_new)


def is_lost_connection(error: BaseException) -> bool:
    """Whether it says that another process is gone, or does not answer."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and _LOST_CONNECTION.search(str(error)) is not None
    )


def _init_process_group() -> None:
    try:
        if torch.cuda.is_available():
            _choose_gpu(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("cpu:gloo,cuda:nccl")
        else:
            dist.init_process_group("gloo")
    except (ValueError, LookupError, RuntimeError) as error:
        raise UsageError(f"the processes do not find each other ({error}): start them with torchrun") from None


def _choose_gpu(local_rank: int) -> None:
    """Each process has one of its own."""
    if local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"this machine has {torch.cuda.device_count()} GPUs, and more processes: lower torchrun --nproc-per-node"
        )
    torch.cuda.set_device(local_rank)
