"""Puts an engine together: memory is planned first, then allocated."""

from dataclasses import dataclass
from pathlib import Path

from codemill.engine.cache_manager import CacheManager
from codemill.engine.draft_model import DraftModelDrafter
from codemill.engine.engine import Engine, EngineParts
from codemill.engine.memory import kv_bytes_per_token, plan_cache
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
    plan = plan_cache(
        model.config,
        model.dtype,
        model.device,
        config,
        context_length(model.config, max_model_len),
        must_fit=max_model_len is not None,
        draft_bytes_per_token=0 if draft is None else kv_bytes_per_token(draft.config, model.dtype),
    )
    shape = plan.shape
    cache = Cache.allocate_blocks(
        model.config, shape.num_blocks, shape.block_size, shape.num_states, model.dtype, model.device
    )
    manager = CacheManager(shape)
    speculation = _speculation(config.speculative, model, draft, manager)
    engine = Engine(EngineParts(config, manager, ModelRunner(model, cache), speculation))
    return BuiltEngine(engine, plan.max_model_len)


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
    draft = load_model(speculative.draft_model, model.dtype, model.device)
    check_draft(draft, model)
    return draft


def check_draft(draft: CausalLM, model: CausalLM) -> None:
    """Raise UsageError if `draft` cannot draft for `model`."""
    if draft.config.vocab_size != model.config.vocab_size:
        sizes = f"{draft.config.vocab_size} tokens, the model {model.config.vocab_size}"
        raise UsageError(f"the draft model has a vocabulary of {sizes}: choose one of the same family")
    if draft.config.linear_attention is not None:
        raise UsageError(
            "the draft model has recurrent layers, whose drafts cannot be taken back: choose a Qwen3 model"
        )


def _speculation(
    config: SpeculativeConfig | None, model: CausalLM, draft: DraftNetwork | None, manager: CacheManager
) -> Speculation:
    if config is None:
        return Speculation(None, 0)
    return Speculation(_drafter(config, model, draft, manager), config.num_tokens)


def _drafter(config: SpeculativeConfig, model: CausalLM, draft: DraftNetwork | None, manager: CacheManager) -> Drafter:
    if config.method == "ngram":
        return NgramDrafter(config)
    assert draft is not None
    shape = manager.shape
    cache = Cache.allocate_blocks(draft.config, shape.num_blocks, shape.block_size, 0, model.dtype, model.device)
    if isinstance(draft, MtpHead):
        return MtpDrafter(draft, model, cache, manager)
    return DraftModelDrafter(draft, cache, manager)
