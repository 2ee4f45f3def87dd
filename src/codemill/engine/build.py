"""Puts an engine together: memory is planned first, then allocated."""

from dataclasses import dataclass
from pathlib import Path

import torch

from codemill.config import ModelConfig
from codemill.engine.block_store import BlockStore, model_fingerprint
from codemill.engine.cache_manager import CacheManager, CacheShape
from codemill.engine.disk_cache import DiskCache
from codemill.engine.draft_model import DraftModelDrafter
from codemill.engine.engine import Engine, EngineParts
from codemill.engine.memory import kv_bytes_per_token, plan_cache, resolve_kv_dtype
from codemill.engine.mtp_drafter import MtpDrafter
from codemill.engine.request import context_length
from codemill.engine.runner import ModelRunner
from codemill.engine.speculative import Drafter, NgramDrafter, Speculation
from codemill.engine_config import EngineConfig, SpeculativeConfig
from codemill.errors import UsageError
from codemill.models.cache import Cache
from codemill.models.decoder import CausalLM
from codemill.models.loader import load_model, load_mtp
from codemill.models.mtp import MtpHead
from codemill.spec import resolve

DraftNetwork = CausalLM | MtpHead


@dataclass(frozen=True)
class BuiltEngine:
    """An engine, and the longest context in tokens that it can hold."""

    engine: Engine
    max_model_len: int


def build_engine(
    model: CausalLM, config: EngineConfig, max_model_len: int | None = None, draft: DraftNetwork | None = None
) -> BuiltEngine:
    """An engine for `model`, with `draft` from `load_draft` if the settings ask for one.

    Raises UsageError if the model has no context of `max_model_len` tokens or the cache has no room for it.
    """
    kv_dtype = resolve_kv_dtype(config, model.dtype)
    plan = plan_cache(
        model.config,
        model.dtype,
        model.device,
        config,
        context_length(model.config, max_model_len),
        must_fit=max_model_len is not None,
        draft_bytes_per_token=0 if draft is None else kv_bytes_per_token(draft.config, kv_dtype),
    )
    shape = plan.shape
    if config.batch_invariant and model.device.type != "cpu":
        raise UsageError(f"batch_invariant is for the CPU only, and the model is on {model.device}")
    model.set_batch_invariant(config.batch_invariant)
    networks = [model] if draft is None else [model, draft]
    memory = [_allocate(network.config, shape, model, kv_dtype) for network in networks]
    disk = _open_disk_cache(config, model, memory)
    manager = CacheManager(shape, disk)
    speculation = _speculation(config.speculative, model, draft, memory[-1], manager)
    parts = EngineParts(config, manager, ModelRunner(model, memory[0]), speculation, memory, disk)
    return BuiltEngine(Engine(parts), plan.max_model_len)


def load_draft(config: EngineConfig, spec: str | Path | None, model: CausalLM) -> DraftNetwork | None:
    """The network that drafts for `model`, which came from `spec`. Raises UsageError if there is none that can."""
    speculative = config.speculative
    if speculative is None or speculative.method == "ngram":
        return None
    if speculative.method == "mtp":
        head = load_mtp(spec, model)
        if head is None:
            raise UsageError("speculative method 'mtp': the checkpoint has no such head; choose ngram or draft")
        return head
    source = resolve(speculative.draft_model)
    _check_draft(source.load_config(), model.config)
    return load_model(speculative.draft_model, model.dtype, model.device)


def _check_draft(draft: ModelConfig, target: ModelConfig) -> None:
    """Raise UsageError if one model cannot draft for the other."""
    if draft.vocab_size != target.vocab_size:
        sizes = f"{draft.vocab_size} tokens, the model {target.vocab_size}"
        raise UsageError(f"the draft model has a vocabulary of {sizes}: choose one of the same family")
    if draft.linear_attention is not None:
        raise UsageError(
            "the draft model has recurrent layers, whose drafts cannot be taken back: choose a Qwen3 model"
        )


def _allocate(config: ModelConfig, shape: CacheShape, model: CausalLM, kv_dtype: torch.dtype) -> Cache:
    """A cache for a network of this configuration, with the blocks of the model."""
    sizes = (shape.num_blocks, shape.block_size, shape.num_states)
    return Cache.allocate_blocks(config, *sizes, model.dtype, model.device, kv_dtype)


def _open_disk_cache(config: EngineConfig, model: CausalLM, memory: list[Cache]) -> DiskCache | None:
    if config.prefix_cache_dir is None:
        return None
    kv_dtype = resolve_kv_dtype(config, model.dtype)
    parts = (str(model.config), str(config.block_size), str(len(memory)), str(kv_dtype))
    fingerprint = model_fingerprint(model, *parts)
    store = BlockStore(Path(config.prefix_cache_dir).expanduser(), fingerprint, config.prefix_cache_dir_bytes)
    return DiskCache(store, memory)


def _speculation(
    config: SpeculativeConfig | None,
    model: CausalLM,
    draft: DraftNetwork | None,
    cache: Cache,
    manager: CacheManager,
) -> Speculation:
    """`cache` is the drafting network's, if there is one."""
    if config is None:
        return Speculation(None, 0)
    drafter: Drafter = NgramDrafter(config)
    if isinstance(draft, MtpHead):
        drafter = MtpDrafter(draft, model, cache, manager)
    elif draft is not None:
        drafter = DraftModelDrafter(draft, cache, manager)
    return Speculation(drafter, config.num_tokens)
