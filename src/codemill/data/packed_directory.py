"""A folder with packed rows, the tokenised documents they were made of, and what they were made from."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from codemill.chat.tokenizer import Tokenizer
from codemill.data.code_documents import CodeTransform
from codemill.data.conversations import ConversationData, load_code, load_documents
from codemill.data.overlong import FittedDocuments, OverlongCounts
from codemill.data.packed_documents import PackedDocuments
from codemill.data.packing import PackedRows
from codemill.data.token_file import load_rows
from codemill.errors import CodemillError, UsageError

Progress = Callable[[int], None]
_FORMAT = 2  # of how documents are cut and packed; another number packs anew


@dataclass(frozen=True)
class PackedDirectory:
    """rows.npy, documents/ and pack.json, which is written last."""

    path: Path

    @property
    def is_there(self) -> bool:
        """Whether anything was packed into it."""
        return (self.path / "pack.json").is_file()

    @property
    def info(self) -> dict[str, Any]:
        """What pack.json says. Raises CodemillError if it is not there or damaged."""
        try:
            value = json.loads((self.path / "pack.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CodemillError(f"{self.path} holds no packed data: make it with `codemill data pack`") from None
        except (OSError, ValueError) as error:
            raise CodemillError(f"{self.path / 'pack.json'} cannot be read ({error}): pack again") from None
        if not isinstance(value, dict) or not {"key", "tokenizer"} <= value.keys():
            raise CodemillError(f"{self.path / 'pack.json'} is damaged: pack again")
        return value

    def rows(self, tokenizer: Tokenizer | None = None) -> PackedRows:
        """The packed rows, memory-mapped. Raises UsageError if they were made with another tokenizer than this."""
        info = self.info
        if tokenizer is not None and info["tokenizer"] != tokenizer.fingerprint:
            raise UsageError(f"{self.path} was packed with another tokenizer or chat template: pack again")
        return load_rows(self.path / "rows.npy")

    def pack(
        self,
        tokenizer: Tokenizer,
        settings: ConversationData,
        code: CodeTransform | None = None,
        progress: Progress = lambda _: None,
    ) -> dict[str, Any]:
        """Tokenise and pack `settings.train`, as far as that has not been done; returns what pack.json says.

        Raises as `load_documents` does.
        """
        settings = replace(settings, cache=str(self.path / "documents"))
        start = time.monotonic()
        if code is None:
            documents = load_documents(settings.train, tokenizer, settings, progress)
        else:
            documents = load_code(settings.train, tokenizer, settings, code, progress)
        tokenised = time.monotonic()
        key = _key(documents, tokenizer, settings)
        if self._is_packed(key):
            return {**self.info, "reused": True}
        (self.path / "pack.json").unlink(missing_ok=True)
        packed = PackedDocuments(documents, settings.context, _pad_id(tokenizer), settings.packing)
        binned = time.monotonic()
        packed.save(self.path / "rows.npy")
        seconds = {"tokenise": tokenised - start, "pack": binned - tokenised, "write": time.monotonic() - binned}
        info = {"key": key, "tokenizer": tokenizer.fingerprint, **_figures(documents, packed), "seconds": seconds}
        _write_json(self.path / "pack.json", info)
        return {**info, "reused": False}

    def _is_packed(self, key: str) -> bool:
        try:
            load_rows(self.path / "rows.npy")
            return bool(self.info["key"] == key)
        except CodemillError:
            return False


def counts_of(info: Mapping[str, Any]) -> OverlongCounts:
    """What was left out, as pack.json says."""
    return OverlongCounts(**{each.name: info.get(each.name, 0) for each in fields(OverlongCounts)})


def _key(documents: FittedDocuments, tokenizer: Tokenizer, settings: ConversationData) -> str:
    """Of all that decides what the rows are."""
    fit = [_FORMAT, settings.context, settings.overlong, settings.packing, _pad_id(tokenizer)]
    return hashlib.sha256(json.dumps([documents.documents.keys, fit]).encode()).hexdigest()


def _pad_id(tokenizer: Tokenizer) -> int:
    return tokenizer.pad_token_id or 0


def _figures(documents: FittedDocuments, packed: PackedDocuments) -> dict[str, Any]:
    found = documents.documents
    return {
        "records": found.records,
        "documents": len(documents),
        "tokens": packed.num_tokens,
        "learned_tokens": documents.num_learned,
        **asdict(documents.counts),
        "context": packed.capacity,
        "rows": len(packed),
        "fill": packed.fill,
        "input_bytes": found.input_bytes,
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
