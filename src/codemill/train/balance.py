"""What keeps the experts of a mixture busy alike, and what shows whether they are.

The load-balancing loss (Fedus et al. 2021, arXiv:2101.03961, eq. 4 to 6) of a layer is E * sum over experts of f_i *
P_i: f_i is the share of tokens that chose expert i (they sum up to k), P_i the mean probability that routers gave it.
It is k where all are alike. Over a single micro-batch it would make every document use all experts; so f is counted
over the whole batch of a step, in all processes (Qiu et al. 2025, arXiv:2501.11873). As there, micro-batches are passed
through one by one: f is that of the micro-batches of the step so far, the present one included, kept in a buffer. The
gradient flows through P alone, of which every micro-batch contributes its tokens' part of the step's.

`transformers` takes f and P over the tokens of all layers together before it multiplies them, so that a layer that
neglects an expert is hidden by another that overuses it. Here each layer has its own, and the loss is their mean: equal
to theirs for one layer.

Shapes: N tokens, E experts, k top-k, L layers with experts.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from codemill.data.packing import PADDING_DOCUMENT
from codemill.kernels.experts import Routing
from codemill.train.balance_config import BalanceConfig
from codemill.train.batch import Batch
from codemill.train.objective import Loss, Objective
from codemill.train.parallel import Parallel
from codemill.train.policy import Policy

TOKENS = "router_tokens"  # their count in a step's totals


def expert_counts(routing: Routing, is_token: Tensor) -> Tensor:
    """How many tokens chose each expert, fp64 [E]; is_token bool [N] leaves out padding."""
    chosen = routing.experts[is_token].flatten()
    return torch.bincount(chosen, minlength=routing.logits.shape[1]).double()


def balance_loss(routing: Routing, is_token: Tensor, frequency: Tensor, num_tokens: float) -> Tensor:
    """E * sum of f_i * P_i; `frequency` fp [E] is f, and `num_tokens` what the sum of probabilities is divided by."""
    probabilities = routing.logits.softmax(dim=-1, dtype=torch.float32)[is_token].sum(dim=0) / num_tokens
    return len(frequency) * torch.dot(frequency.to(probabilities), probabilities)


def z_loss(routing: Routing, is_token: Tensor, num_tokens: float) -> Tensor:
    """The sum over tokens of (log sum exp logits)^2, divided by `num_tokens`."""
    return routing.logits[is_token].float().logsumexp(dim=-1).square().sum() / num_tokens


class RouterBalance:
    """The losses of all layers over the micro-batches of a step, and the load of their experts.

    Between `begin_step` and `finish_step`, `loss` is called for each micro-batch. parallel: the processes that share a
    step's tokens; None for one alone.
    """

    def __init__(self, config: BalanceConfig, parallel: Parallel | None = None) -> None:
        self.config, self._parallel = config, Parallel() if parallel is None else parallel
        self._counts: dict[str, Tensor] = {}  # of this step so far, in all processes
        self._tokens = 0.0
        self._idle: dict[str, Tensor] = {}  # steps since each expert had a token

    def begin_step(self) -> None:
        """Forget the counts of the step before."""
        self._counts, self._tokens = {}, 0.0

    def loss(self, routing: Mapping[str, Routing], is_token: Tensor, num_tokens: float) -> Tensor:
        """This micro-batch's part of the step's loss, a scalar; is_token bool [N], `num_tokens` of the whole step."""
        self._count(routing, is_token)
        frequencies = {name: counts / max(self._tokens, 1.0) for name, counts in self._counts.items()}
        balance = [balance_loss(each, is_token, frequencies[name], num_tokens) for name, each in routing.items()]
        loss = self.config.coefficient * torch.stack(balance).mean()
        if self.config.z_coefficient:
            z = [z_loss(each, is_token, num_tokens) for each in routing.values()]
            loss = loss + self.config.z_coefficient * torch.stack(z).mean()
        return loss

    def finish_step(self) -> dict[str, float]:
        """The load of the step, the same in all processes: see `load_metrics`. Empty if no micro-batch had experts."""
        for name, counts in self._counts.items():
            idle = self._idle.get(name, torch.zeros_like(counts))
            self._idle[name] = torch.where(counts > 0, 0.0, idle + 1)
        dead = {name: int((idle >= self.config.dead_after).sum()) for name, idle in self._idle.items()}
        return load_metrics(self._counts, dead)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: how many steps each expert has had no token, fp64 [E] by layer."""
        return dict(self._idle)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._idle = dict(state)

    @torch.no_grad()
    def _count(self, routing: Mapping[str, Routing], is_token: Tensor) -> None:
        counts = torch.stack([expert_counts(each, is_token) for each in routing.values()])  # [L, E]
        tokens = counts.new_tensor([float(is_token.sum())])
        for tensor in (counts, tokens):
            self._parallel.add_up(tensor)
        self._tokens += float(tokens)
        for name, own in zip(routing, counts.cpu(), strict=True):
            self._counts[name] = self._counts.get(name, torch.zeros_like(own)) + own


def load_metrics(counts: Mapping[str, Tensor], dead: Mapping[str, int]) -> dict[str, float]:
    """Of each layer's counts [E]: `load`, the largest over the mean (1 where all are alike, E at most k of them share
    all); `entropy` of the distribution over experts, divided by log E (1 where all are alike); and `dead` experts.

    Keys are `router/I/load` and so on for layer I, and `router/load` etc. for the worst of all layers.
    """
    metrics: dict[str, float] = {}
    for name, each in counts.items():
        share = each / each.sum().clamp(min=1)
        entropy = float(torch.special.entr(share).sum() / torch.tensor(float(len(share))).log())
        load = float(share.max() * len(share))
        layer = name.split(".")[2] if name.count(".") >= 2 else name
        metrics |= {f"router/{layer}/load": load, f"router/{layer}/entropy": entropy}
        metrics[f"router/{layer}/dead"] = float(dead.get(name, 0))
    for kind, worst in (("load", max), ("entropy", min), ("dead", max)):
        values = [value for key, value in metrics.items() if key.endswith(f"/{kind}")]
        if values:
            metrics[f"router/{kind}"] = worst(values)
    return metrics


class Balanced:
    """An objective, and the balance of the experts beside it."""

    def __init__(self, objective: Objective, balance: RouterBalance) -> None:
        self.objective, self.balance = objective, balance

    def counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Those of the objective, and the tokens that are no padding. Begins a step, unless gradients are off."""
        if torch.is_grad_enabled():
            self.balance.begin_step()
        return {**self.objective.counts(batches), TOKENS: float(sum(batch.num_tokens for batch in batches))}

    def loss(self, policy: Policy, batch: Batch, totals: Mapping[str, float]) -> Loss:
        """With gradients off, as in validation, that of the objective alone."""
        if not torch.is_grad_enabled():
            return self.objective.loss(policy, batch, totals)
        with policy.routing() as routing:
            loss = self.objective.loss(policy, batch, totals)
        is_token = (batch.document_ids != PADDING_DOCUMENT).flatten()
        added = self.balance.loss(routing, is_token, totals[TOKENS])
        return Loss(loss.value + added, {**loss.metrics, "router_loss": added.item()})

    def finish_step(self) -> dict[str, float]:
        """What to report of the step that ends here; not to be added over processes."""
        return self.balance.finish_step()

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: that of the balance."""
        return self.balance.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.balance.load_state(state)
