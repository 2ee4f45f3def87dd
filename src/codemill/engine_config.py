"""Settings of the engine: how much it does at a time, what it remembers, and whether it guesses ahead."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from codemill.errors import UsageError

DraftMethod = Literal["ngram", "draft", "mtp"]
_SIZES = (
    *("max_num_seqs", "max_num_batched_tokens", "max_mixed_tokens", "block_size", "state_interval"),
    "prefix_cache_dir_bytes",
)
KvCacheDtype = Literal["auto", "float32", "bfloat16", "int8"]
KV_CACHE_DTYPES: tuple[KvCacheDtype, ...] = ("auto", "float32", "bfloat16", "int8")
DRAFT_METHODS: tuple[DraftMethod, ...] = ("ngram", "draft", "mtp")


@dataclass(frozen=True)
class SpeculativeConfig:
    """Speculative decoding: drafts are guessed, and the model checks several in one pass. Results stay the same.

    method: "ngram" copies what followed the same tokens before (prompt lookup), "draft" asks a smaller model,
    "mtp" the checkpoint's own prediction head. num_tokens: the most drafts of a sequence in one step; the number adapts
    to how many are accepted. draft_model: a model spec with the same vocabulary. min_match, max_match: how many tokens
    must have occurred before; longer matches are tried first.
    """

    method: DraftMethod = "ngram"
    num_tokens: int = 8
    draft_model: str | Path | None = None
    min_match: int = 2
    max_match: int = 5

    def __post_init__(self) -> None:
        if self.method not in DRAFT_METHODS:
            raise UsageError(f"speculative method {self.method!r}: choose {', '.join(DRAFT_METHODS)}")
        _check_size("num_tokens", self.num_tokens)
        _check_size("min_match", self.min_match)
        _check_size("max_match", self.max_match)
        if self.max_match < self.min_match:
            raise UsageError(f"max_match = {self.max_match}: must be at least min_match, {self.min_match}")
        if (self.method == "draft") != (self.draft_model is not None):
            raise UsageError("speculative method 'draft' needs a draft_model, and no other method takes one")


@dataclass(frozen=True)
class EngineConfig:
    """How the engine batches and remembers. Sizes in tokens or bytes; None means chosen from the memory that is free.

    max_num_seqs: sequences that run at the same time; others wait.
    max_num_batched_tokens: tokens of one step. max_mixed_tokens: the same while some sequences decode, so that a long
        prompt does not hold up their next token for long.
    block_size: tokens of a KV-cache block, the unit of allocation and of prefix reuse.
    kv_cache_dtype: of keys and values; "auto" is the model's own. "int8" takes half the memory of bf16, with a scale
        for each key and value of each head, and is less exact.
    kv_cache_bytes: for KV blocks and recurrent states together; never exceeded.
    enable_prefix_cache: keep what was computed for later requests with the same beginning.
    prefix_cache_dir: keep prompts on disk too, at most prefix_cache_dir_bytes of them.
    state_interval: hybrid models keep a copy of their state so many tokens apart, besides the latest one.
    max_state_checkpoints: how many such copies, all sequences together.
    speculative: None for plain decode.
    batch_invariant: compute each token in the same way in any company, to the last bit; slower, and on the CPU only.
    """

    max_num_seqs: int = 32
    max_num_batched_tokens: int = 2048
    max_mixed_tokens: int = 256
    block_size: int = 16
    kv_cache_dtype: KvCacheDtype = "auto"
    kv_cache_bytes: int | None = None
    enable_prefix_cache: bool = True
    prefix_cache_dir: str | Path | None = None
    prefix_cache_dir_bytes: int = 4 << 30
    state_interval: int = 1024
    max_state_checkpoints: int | None = None
    speculative: SpeculativeConfig | None = None
    batch_invariant: bool = False

    def __post_init__(self) -> None:
        for name in _SIZES:
            _check_size(name, getattr(self, name))
        for name in ("enable_prefix_cache", "batch_invariant"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} = {getattr(self, name)!r}: must be True or False")
        if self.speculative is not None and not isinstance(self.speculative, SpeculativeConfig):
            raise UsageError(f"speculative = {self.speculative!r}: give 'ngram', 'mtp' or a SpeculativeConfig")
        if self.prefix_cache_dir is not None and not self.enable_prefix_cache:
            raise UsageError("prefix_cache_dir needs the prefix cache: leave enable_prefix_cache on")
        if self.prefix_cache_dir is not None and not str(self.prefix_cache_dir):
            raise UsageError("prefix_cache_dir is empty: name a directory")
        if self.kv_cache_dtype not in KV_CACHE_DTYPES:
            raise UsageError(f"kv_cache_dtype = {self.kv_cache_dtype!r}: choose {', '.join(KV_CACHE_DTYPES)}")
        for name in ("kv_cache_bytes", "max_state_checkpoints"):
            if getattr(self, name) is not None:
                _check_size(name, getattr(self, name))
        if self.state_interval % self.block_size:
            raise UsageError(
                f"block_size = {self.block_size}: state_interval, {self.state_interval}, must be a multiple of it"
            )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "EngineConfig":
        """Made of keyword arguments. `speculative` may be a method's name. Raises UsageError for an unknown one."""
        known = {field.name for field in fields(cls)}
        for name in options:
            if name not in known:
                raise UsageError(f"unknown engine option {name!r}: choose {', '.join(sorted(known))}")
        values = dict(options)
        if isinstance(values.get("speculative"), str):
            values["speculative"] = SpeculativeConfig(values["speculative"])
        return cls(**values)


def _check_size(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} = {value!r}: must be a positive integer")
