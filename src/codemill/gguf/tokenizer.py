"""The tokenizer in GGUF metadata: byte-level BPE with Qwen's pre-tokenizer, in and out as a `tokenizer.json`."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codemill.errors import CodemillError
from codemill.gguf.metadata import Metadata

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
PRE_TOKENIZER = "qwen2"
# What "qwen2" stands for: the pattern of every Qwen2 and Qwen3 tokenizer.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp marks every added token that looks like <|this|> as a control token, those of Qwen for code too, which are
# not special in the checkpoints: they are part of the text.
_TEXT_TOKENS = frozenset(
    f"<|{name}|>" for name in "fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep".split()
)
_LOOKS_SPECIAL = re.compile(r"<\|.*\|>")
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_TEMPLATE = "tokenizer.chat_template"
_CONFIGURED = {"eos_token": "eos", "pad_token": "padding", "bos_token": "bos"}


@dataclass(frozen=True)
class TokenizerParts:
    """A tokenizer as Hugging Face files hold it: tokenizer.json, tokenizer_config.json, chat templates by name."""

    json: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)


def read_tokenizer(path: Path, values: Mapping[str, Any]) -> TokenizerParts:
    """The tokenizer in the metadata of the file `path`. Raises CodemillError if there is none that we know."""
    metadata = Metadata(path, values)
    for key, only in (("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", PRE_TOKENIZER)):
        found = metadata.get(key, str)
        if found != only:
            raise CodemillError(f"{path}: {key} = {found[:60]!r} is not supported (only {only!r})")
    tokens, types = metadata.items("tokenizer.ggml.tokens", str), metadata.items("tokenizer.ggml.token_type", int)
    if len(tokens) != len(types):
        raise CodemillError(f"{path}: {len(tokens)} tokens, but {len(types)} entries in tokenizer.ggml.token_type")
    vocabulary = {token: i for i, token in enumerate(tokens) if types[i] == NORMAL}
    _check_vocabulary(path, vocabulary, types.count(NORMAL))
    merges = metadata.items("tokenizer.ggml.merges", str)  # checked by the library that will apply them
    added = [_added(i, tokens[i], kind) for i, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
    config = {name: _token(metadata, tokens, f"tokenizer.ggml.{key}_token_id") for name, key in _CONFIGURED.items()}
    given = {name: token for name, token in config.items() if token is not None}
    return TokenizerParts(_tokenizer_json(vocabulary, merges, added), given, _templates(metadata))


def _check_vocabulary(path: Path, vocabulary: Mapping[str, int], count: int) -> None:
    if len(vocabulary) != count:
        raise CodemillError(f"{path} is corrupt: a token occurs twice in tokenizer.ggml.tokens")
    foreign = sorted(set("".join(vocabulary)) - _ALPHABET)
    if foreign or "" in vocabulary:
        raise CodemillError(f"{path}: tokenizer.ggml.tokens is no byte-level vocabulary ({''.join(foreign[:3])!r})")


def _added(token_id: int, token: str, kind: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": token, **flags, "special": kind == CONTROL and token not in _TEXT_TOKENS}


def _token(metadata: Metadata, tokens: Sequence[str], key: str) -> str | None:
    if key not in metadata.values:
        return None
    token_id = metadata.get(key, int)
    if not 0 <= token_id < len(tokens):
        raise CodemillError(f"{metadata.path}: {key} = {token_id}, but there are {len(tokens)} tokens")
    return tokens[token_id]


def _templates(metadata: Metadata) -> dict[str, str]:
    names = metadata.items("tokenizer.chat_templates", str, [])
    keys = {"default": _TEMPLATE} | {name: f"{_TEMPLATE}.{name}" for name in names}
    return {name: metadata.get(key, str) for name, key in keys.items() if key in metadata.values}


def _tokenizer_json(vocabulary: Mapping[str, int], merges: list[str], added: list[dict[str, Any]]) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL]},
        "post_processor": _BYTE_LEVEL,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def write_tokenizer(parts: TokenizerParts, num_rows: int, source: str) -> dict[str, Any]:
    """Metadata of a tokenizer for a model with `num_rows` rows of embedding; rows without a token are unused ones.

    Raises CodemillError, naming `source`, if GGUF cannot describe the tokenizer or the model has too few rows.
    """
    _check_expressible(parts.json, source)
    added = {entry["id"]: entry for entry in parts.json["added_tokens"]}
    by_id = {token_id: token for token, token_id in parts.json["model"]["vocab"].items()}
    by_id |= {token_id: entry["content"] for token_id, entry in added.items()}
    if max(by_id, default=0) >= num_rows:
        raise CodemillError(f"{source}: the tokenizer has {max(by_id) + 1} tokens, the model only {num_rows} rows")
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(num_rows)]
    types = [_type(added.get(i)) if i in by_id else UNUSED for i in range(num_rows)]
    ids = {token: i for i, token in by_id.items()}
    merges = parts.json["model"]["merges"]  # pairs; one string in older files
    configured = {key: ids.get(_content(parts.config.get(name))) for name, key in _CONFIGURED.items()}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE_TOKENIZER,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in merges],
        **{f"tokenizer.ggml.{key}_token_id": i for key, i in configured.items() if i is not None},
        "tokenizer.ggml.add_bos_token": False,
        **_write_templates(parts.templates),
    }


def no_tokenizer(special: Mapping[str, int | None]) -> dict[str, Any]:
    """Metadata of a model that comes without one; `special` ids by their names in `config.json`."""
    ids = {key: special.get(f"{name}_id") for name, key in _CONFIGURED.items()}
    known = {f"tokenizer.ggml.{key}_token_id": i for key, i in ids.items() if i is not None}
    return {"tokenizer.ggml.model": "none", **known}


def _type(added: Mapping[str, Any] | None) -> int:
    if added is None:
        return NORMAL
    return CONTROL if added["special"] or _LOOKS_SPECIAL.fullmatch(added["content"]) else USER_DEFINED


def _content(token: Any) -> str:
    return (token.get("content") if isinstance(token, dict) else token) or ""


def _write_templates(templates: Mapping[str, str]) -> dict[str, Any]:
    named = [name for name in templates if name != "default"]
    metadata: dict[str, Any] = {"tokenizer.chat_templates": named} if named else {}
    for name, text in templates.items():
        metadata[_TEMPLATE if name == "default" else f"{_TEMPLATE}.{name}"] = text
    return metadata


def _check_expressible(raw: Mapping[str, Any], source: str) -> None:
    """It splits text as Qwen's do: metadata can only name a way to do it."""
    model, normalizer = raw.get("model") or {}, raw.get("normalizer") or {}
    if model.get("type") != "BPE" or PATTERN not in _patterns(raw.get("pre_tokenizer")):
        raise CodemillError(f"{source}: the tokenizer is not byte-level BPE with Qwen's pattern, which GGUF cannot say")
    if normalizer.get("type") != "NFC":
        raise CodemillError(f"{source}: the tokenizer does not normalise to NFC, as Qwen's do, which GGUF cannot say")


def _patterns(pre_tokenizer: Any) -> list[str]:
    parts = (pre_tokenizer or {}).get("pretokenizers", [])
    return [part["pattern"].get("Regex", "") for part in parts if part.get("type") == "Split"]


def encode_json(raw: Mapping[str, Any]) -> bytes:
    """The file `tokenizer.json`."""
    return json.dumps(raw, ensure_ascii=False).encode()


def _byte_alphabet() -> frozenset[str]:
    """GPT-2's printable stand-ins of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return frozenset(map(chr, [*printable, *range(256, 256 + 256 - len(printable))]))


_ALPHABET = _byte_alphabet()
