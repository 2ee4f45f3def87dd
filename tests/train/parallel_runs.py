"""Small runs of every family, whole and in parts, for processes that import this. They know nothing of transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from codemill.config import ModelConfig
from codemill.models import CausalLM
from codemill.models.initialize import initialize
from codemill.train.adapter import TrainableLora
from codemill.train.balance import Balanced, RouterBalance
from codemill.train.balance_config import BalanceConfig
from codemill.train.batch import Batch
from codemill.train.config import LoopConfig, OptimizerConfig
from codemill.train.loop import Trainer
from codemill.train.lora_config import LoraSection
from codemill.train.objective import CrossEntropy, Objective
from codemill.train.parallel import Parallel, Processes
from codemill.train.parallel_config import ParallelConfig
from codemill.train.policy import Policy
from codemill.train.source import BatchSource, PackedSource, validation_batches
from train.conftest import make_rows

_COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
    "torch_dtype": "float32",
}
_MOE = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_HYBRID = {
    "shared_expert_intermediate_size": 40,
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_conv_kernel_dim": 4,
}
FAMILIES = {
    "qwen3": {**_COMMON, "tie_word_embeddings": True},
    "qwen3_moe": {**_COMMON, **_MOE},
    "qwen3_next": {**_COMMON, **_MOE, **_HYBRID},
    # So many that in a step some get no token.
    "many_experts": {**_COMMON, **_MOE, "num_experts": 64, "model_type": "qwen3_moe"},
}
LOOP = LoopConfig(steps=5, rows_per_step=4, rows_per_micro_batch=2, evaluate_every=2, checkpoint_every=100)
# A large eps: an update that is only the sign of a gradient makes much of rounding where that is close to 0.
ADAMW = OptimizerConfig(name="adamw", lr=1e-2, warmup_steps=1, schedule="constant", eps=1e-3, max_grad_norm=0.3)
MUON = replace(ADAMW, name="muon", eps=1e-8)
WHOLE = ParallelConfig()


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    family: str
    parallel: ParallelConfig = WHOLE
    optimizer: OptimizerConfig = ADAMW
    loop: LoopConfig = LOOP
    lora: LoraSection | None = None
    balance: BalanceConfig | None = None

    def objective(self, parallel: Parallel) -> Objective:
        if self.balance is None:
            return CrossEntropy()
        return Balanced(CrossEntropy(), RouterBalance(self.balance, parallel))


@dataclass(frozen=True)
class Outcome:
    """What the log has by step, what validation measured, and the whole weights that were trained."""

    losses: list[float]
    metrics: list[Mapping[str, float]]
    norms: list[float]
    tokens: list[int]
    validation: list[float]
    weights: dict[str, Tensor] = field(repr=False)
    kept: int  # parameters of the model on this process


class Interleaved:
    """The micro-batches of several processes, for one: first those that they have first."""

    def __init__(self, sources: Sequence[PackedSource]) -> None:
        self._sources = sources

    def micro_batches(self, step: int) -> list[Batch]:
        each = [source.micro_batches(step) for source in self._sources]
        return [batch for batches in zip(*each, strict=True) for batch in batches]


def make_policy(case: Case) -> Policy:
    model = CausalLM(ModelConfig.from_dict({"model_type": case.family, **FAMILIES[case.family]}))
    initialize(model, seed=0)
    if case.lora is None:
        return Policy(model.requires_grad_(True))
    return Policy(model.requires_grad_(False), TrainableLora(model, case.lora))


def make_trainer(case: Case, directory: Path, parallel: Parallel, num_shares: int = 1) -> Trainer:
    """num_shares: those of the rows, where this process takes all of them."""
    rows, loop = make_rows(40), case.loop
    source: BatchSource
    if parallel.num_processes > 1:
        source = PackedSource(rows, loop, *parallel.share_of_rows)
    elif case.balance is not None:  # whose loss is one of all tokens that are read at a time
        source = PackedSource(rows, replace(loop, rows_per_micro_batch=num_shares * loop.rows_per_micro_batch))
    else:
        source = Interleaved([PackedSource(rows, loop, rank, num_shares) for rank in range(num_shares)])
    validation = {"held_out": validation_batches(make_rows(9, seed=1), loop)}
    policy, optimizer = make_policy(case), case.optimizer
    return Trainer(policy, case.objective(parallel), source, validation, loop, optimizer, directory, parallel=parallel)


def outcome(trainer: Trainer) -> Outcome:
    """Of a run to its end."""
    reports = list(trainer.run())
    trainer.parallel.reshard(trainer.policy)
    return Outcome(
        [report.loss for report in reports],
        [report.metrics for report in reports],
        [report.grad_norm for report in reports],
        [report.tokens for report in reports],
        [report.validation["held_out"] for report in reports if report.validation is not None],
        {name: whole(tensor).detach().clone() for name, tensor in trainer.policy.trained.state_dict().items()},
        sum(local(parameter).numel() for parameter in trainer.policy.model.parameters()),
    )


def dtypes_of_a_pass(case: Case, directory: Path) -> dict[str, torch.dtype]:
    """Of the parameters while the first layer computes, by those of the processes that this is one of."""
    trainer = make_trainer(case, directory, Processes(case.parallel))
    model, found = trainer.policy.model, dict[str, torch.dtype]()
    inner = model.model.layers[0].self_attn.q_proj
    inner.register_forward_hook(lambda *_: found.update({name: x.dtype for name, x in model.named_parameters()}))
    next(trainer.run())
    return found


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def both_ways(cases: dict[str, Case], directory: Path) -> dict[str, tuple[Outcome, Outcome]]:
    """Each case by all processes together, and by one alone, which this is for some of them."""
    found = {}
    for number, (name, case) in enumerate(cases.items()):
        parallel = Processes(case.parallel)
        together = outcome(make_trainer(case, directory / name, parallel))
        if number % parallel.num_processes == parallel.rank:
            alone = make_trainer(case, directory / f"{name}-alone", Parallel(), parallel.num_shares)
            found[name] = (together, outcome(alone))
    return found
