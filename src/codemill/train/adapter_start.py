"""Where the training of an adapter begins: at zero, or at an adapter that exists. Shapes: E experts, r rank."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from codemill.errors import CodemillError, UsageError
from codemill.kernels.low_rank import LowRank
from codemill.models.decoder import CausalLM
from codemill.models.dora import weight_of
from codemill.models.lora import LoraAdapter
from codemill.models.lora_config import LoraConfig, fits
from codemill.models.lora_file import stored_updates
from codemill.train.adapter_targets import Target, all_targets, find_targets, needs_parameter
from codemill.train.lora_config import LoraSection
from codemill.train.low_rank_weights import LowRankWeights


def new_weights(model: CausalLM, section: LoraSection, config: LoraConfig, seed: int) -> list[LowRankWeights]:
    """Updates that change nothing yet, of what `section` names. Raises UsageError for what the model does not have."""
    targets = find_targets(model, section.targets)
    if section.dora:
        _check_dora(model, targets)
    _check_patterns(section, targets)
    generator, made = torch.Generator().manual_seed(seed), []
    for target in targets:
        name = target.name
        weights = LowRankWeights(target, config.rank(name), config.alpha(name), config.scale(name))
        weights.initialize(generator)
        weights.to(model.device)
        if section.dora:
            weights.train_magnitude(model)
        made.append(weights)
    return made


def _check_patterns(section: LoraSection, targets: Sequence[Target]) -> None:
    """A pattern that fits nothing is a mistake in its spelling."""
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(section, key):
            if not any(fits(pattern, target.name) for target in targets):
                raise UsageError(
                    f"lora.{key}: {pattern!r} fits the end of no name of what is adapted, such as {targets[0].name}"
                )


def _check_dora(model: CausalLM, targets: Sequence[Target]) -> None:
    without = dict.fromkeys(each.leaf for each in targets if each.is_embedding or needs_parameter(each, model))
    if without:
        raise UsageError(
            f"lora.dora: there is no DoRA of {', '.join(without)} in this model: set lora.targets to others"
        )


def stored_weights(model: CausalLM, directory: Path, config: LoraConfig) -> list[LowRankWeights]:
    """The updates of the adapter in `directory`, to train them on. Raises CodemillError as `LoraAdapter.load` does."""
    updates = LoraAdapter.load(
        directory, model.config, torch.float32, model.device, weights=partial(weight_of, model)
    ).updates
    magnitudes = {each.module: each.read_magnitude() for each in stored_updates(directory, model.config)}
    made = []
    for target in all_targets(model):
        if target.parameter:
            experts = updates.experts.get(target.module)
            found = None if experts is None else _stacked(directory, target, getattr(experts, target.parameter[:-5]))
        else:
            found = (updates.embeddings if target.is_embedding else updates.linears).get(target.module)
        if found is not None:
            weights = _filled(target, found, config)
            if (magnitude := magnitudes.get(target.module)) is not None and not target.parameter:
                weights.train_magnitude(model)
                weights.magnitude = nn.Parameter(magnitude.to(model.device, torch.float32, copy=True))
            made.append(weights)
    return made


def _filled(target: Target, update: LowRank, config: LoraConfig) -> LowRankWeights:
    name, rank = target.name, update.b.shape[-1]
    is_by_config = (rank, update.scale) == (config.rank(name), config.scale(name))
    # Else several updates were joined into one.
    alpha = config.alpha(name) if is_by_config else update.scale * (math.sqrt(rank) if config.use_rslora else rank)
    weights = LowRankWeights(target, rank, alpha, update.scale)
    weights.a, weights.b = nn.Parameter(update.a), nn.Parameter(update.b)
    return weights


def _stacked(directory: Path, target: Target, updates: Sequence[LowRank | None]) -> LowRank | None:
    """The updates of all experts as one, a [E, r, in] and b [E, out, r]; None if there are none."""
    there = [update for update in updates if update is not None]
    if not there:
        return None
    if len(there) < len(updates) or len({(update.b.shape, update.scale) for update in there}) > 1:
        raise CodemillError(
            f"{directory}: the updates of {target.name} are not of one rank, scale and number: merge this adapter into "
            "the model, and train a new one"
        )
    return LowRank(_stack(each.a for each in there), _stack(each.b for each in there), there[0].scale)


def _stack(tensors: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(tensors))
