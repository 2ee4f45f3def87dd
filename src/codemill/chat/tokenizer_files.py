"""Finds and reads the files of a tokenizer: which directory a model spec means, and what its JSON files say."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.errors import CodemillError, UsageError
from codemill.spec import resolve

if TYPE_CHECKING:
    import tokenizers

    from codemill.gguf.container import GgufFile

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "added_tokens.json",
)
ADDED_TOKENS_FILES = ("added_tokens.json", "added_tokens_qwen3.json")


@dataclass(frozen=True)
class TokenizerFiles:
    """What was found: `tokenizer.json` as bytes, the configuration, chat templates by name, extra added tokens."""

    path: Path
    blob: bytes
    config: dict[str, Any] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    added_tokens: dict[str, int] = field(default_factory=dict)


def read_tokenizer_files(spec: str | Path | None) -> TokenizerFiles:
    """Read the tokenizer a model spec means.

    Raises CodemillError naming the file that is missing or unreadable, UsageError for a spec that means nothing.
    """
    file = _gguf_file(spec)
    if file is not None:
        return _from_gguf(file)
    path = tokenizer_path(spec)
    folder = path.parent
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise CodemillError(f"{path}: cannot read the tokenizer: {error.strerror}") from error
    config = _read_mapping(folder / "tokenizer_config.json")
    added: dict[str, int] = {}
    for name in ADDED_TOKENS_FILES:
        added |= _read_mapping(folder / name)
    return TokenizerFiles(path, blob, config, _templates(folder, config), added)


def _gguf_file(spec: str | Path | None) -> "GgufFile | None":
    is_file = spec is not None and Path(spec).suffix.lower() == ".gguf" and Path(spec).is_file()
    return resolve(spec).gguf if is_file else None


def _from_gguf(file: "GgufFile") -> TokenizerFiles:
    from codemill.gguf.tokenizer import encode_json, read_tokenizer

    parts = read_tokenizer(file.path, file.metadata)
    return TokenizerFiles(file.path, encode_json(parts.json), parts.config, parts.templates)


def tokenizer_path(spec: str | Path | None) -> Path:
    """The `tokenizer.json` of a model spec, or that file itself.

    `random:PRESET` models know no text: they get the embedded tokenizer, which is good for benchmarks only.
    """
    if spec is not None and Path(spec).is_file():
        return _as_tokenizer_json(Path(spec))
    source = resolve(spec)
    if source.kind == "random":
        source = resolve(None)
    path = source.fetch(TOKENIZER_FILES) / "tokenizer.json"
    if not path.is_file():
        raise CodemillError(f"{path}: no such file: the model {source.name} has no tokenizer")
    return path


def _as_tokenizer_json(path: Path) -> Path:
    if path.suffix != ".json":
        raise UsageError(f"{path}: not a tokenizer.json; give its directory or the file itself")
    return path


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CodemillError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CodemillError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name; a `chat_template.jinja` beside the configuration wins as the default one."""
    stored = config.get("chat_template") or {}
    if isinstance(stored, str):
        stored = {"default": stored}
    elif isinstance(stored, list):
        stored = {entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, dict)}
    if not isinstance(stored, dict) or not all(isinstance(part, str) for pair in stored.items() for part in pair):
        raise CodemillError(f"{folder / 'tokenizer_config.json'}: chat_template must be text or a list of named texts")
    path = folder / "chat_template.jinja"
    return {**stored, "default": _read_template(path)} if path.is_file() else stored


def _read_template(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise CodemillError(f"{path}: not readable as UTF-8 text: {error}") from error


def build_backend(files: TokenizerFiles) -> "tokenizers.Tokenizer":
    """The `tokenizers` object of these files. Raises CodemillError if they are corrupt or not byte-level BPE."""
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_buffer(files.blob)
    except ValueError as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise CodemillError(f"{files.path}: corrupt tokenizer file: {reason.splitlines()[0]}") from error
    if not isinstance(backend.decoder, tokenizers.decoders.ByteLevel):
        raise CodemillError(f"{files.path}: not a byte-level BPE tokenizer, the only kind supported")
    backend.no_truncation()
    backend.no_padding()
    _add_missing_tokens(backend, files)
    return backend


def _add_missing_tokens(backend: "tokenizers.Tokenizer", files: TokenizerFiles) -> None:
    from tokenizers import AddedToken

    details = files.config.get("added_tokens_decoder", {})
    special = {entry["content"] for entry in details.values() if entry.get("special")}
    for token, token_id in sorted(files.added_tokens.items(), key=lambda item: item[1]):
        if backend.token_to_id(token) is None:
            backend.add_tokens([AddedToken(token, normalized=False, special=token in special)])
        found = backend.token_to_id(token)
        if found != token_id:
            raise CodemillError(f"{files.path}: token {token!r} has id {found}, but added_tokens.json says {token_id}")
