"""The tensors of a LoRA adapter as PEFT saves them.

A tensor's name is that of a module, with `base_model.model.` before and `.lora_A.weight` [r, in] or `.lora_B.weight`
[out, r] after; for embeddings `.lora_embedding_A` and `.lora_embedding_B`; of DoRA `.lora_magnitude_vector` [out].
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path

from torch import Tensor

from codemill.config import ModelConfig
from codemill.errors import CodemillError
from codemill.models.checkpoint import MappedFiles
from codemill.models.lora_config import CONFIG_FILE
from codemill.models.safetensors_file import StoredTensor, read_header

WEIGHT_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>A|B|magnitude_vector)(\.weight)?")
# PEFT saves the model's own weights along where it adapts the embedding or the head.
_COPY = re.compile(r"base_model\.model\.(model\.embed_tokens|lm_head)\.base_layer\.weight")


@dataclass(frozen=True)
class StoredUpdate:
    """The two matrices of an update on disk. `module` is what it updates, by its name in the file."""

    module: str
    is_embedding: bool
    a: StoredTensor  # [r, in]
    b: StoredTensor  # [out, r]
    magnitude: StoredTensor | None  # [out]
    files: MappedFiles

    def read(self, out_features: int, in_features: int, rank: int) -> tuple[Tensor, Tensor]:
        """a and b as they lie on disk. Raises CodemillError if one is not of these sizes."""
        for stored, shape in ((self.a, (rank, in_features)), (self.b, (out_features, rank))):
            if stored.shape != shape:
                raise CodemillError(
                    f"{stored.path}: tensor {stored.name} has shape {list(stored.shape)}, but the model and "
                    f"{CONFIG_FILE} make it {list(shape)}"
                )
        return self.files.view(self.a), self.files.view(self.b)

    def read_magnitude(self) -> Tensor | None:
        """The magnitudes [out] as they lie on disk, if there are any. Raises CodemillError if b is of another size."""
        if self.magnitude is None:
            return None
        if self.magnitude.shape != self.b.shape[:1]:
            raise CodemillError(
                f"{self.magnitude.path}: tensor {self.magnitude.name} has shape {list(self.magnitude.shape)}, but "
                f"lora_B makes it {list(self.b.shape[:1])}"
            )
        return self.files.view(self.magnitude)


def stored_updates(directory: Path, config: ModelConfig) -> Iterator[StoredUpdate]:
    """The updates in `directory`. Raises CodemillError for a tensor that is no part of one."""
    path = directory / WEIGHT_FILE
    if not path.is_file():
        raise CodemillError(f"{path} does not exist: save the adapter with PEFT's save_pretrained, as safetensors")
    pairs = _pairs(path, config)
    if not pairs:
        raise CodemillError(f"{path} holds no LoRA tensors: is this an adapter?")
    files = MappedFiles()
    for (module, is_embedding), pair in pairs.items():
        for side in ("A", "B"):
            if side not in pair:
                raise CodemillError(f"{path}: tensor {next(iter(pair.values())).name} has no lora_{side} to go with it")
        yield StoredUpdate(module, is_embedding, pair["A"], pair["B"], pair.get("magnitude_vector"), files)


def _pairs(path: Path, config: ModelConfig) -> dict[tuple[str, bool], dict[str, StoredTensor]]:
    """Module name, and whether it is an embedding -> its tensors A and B."""
    pairs: dict[tuple[str, bool], dict[str, StoredTensor]] = {}
    for name, stored in read_header(path).items():
        if _COPY.fullmatch(name):
            _check_copy(stored, config)
            continue
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise CodemillError(
                f"{path}: tensor {name} is no part of a LoRA update, so it cannot be applied: train without it, or "
                "merge the adapter into the model with PEFT"
            )
        key = match["module"].removeprefix(PREFIX), match["embedding"] is not None
        pairs.setdefault(key, {})[match["side"]] = stored
    for module in [module for module, is_embedding in pairs if is_embedding]:
        pairs[module, True].update(pairs.pop((module, False), {}))  # a magnitude's name says not of what it is
    return pairs


def _check_copy(stored: StoredTensor, config: ModelConfig) -> None:
    """A copy of another shape is from a model whose vocabulary was changed before the training."""
    shape = config.vocab_size, config.hidden_size
    if stored.shape != shape:
        raise CodemillError(
            f"{stored.path}: tensor {stored.name} has shape {list(stored.shape)}, the model's is {list(shape)}: "
            "the adapter is for another vocabulary"
        )


def fingerprint(directory: Path) -> bytes:
    """A digest of the adapter's files."""
    digest = blake2b(digest_size=16)
    for name in (CONFIG_FILE, WEIGHT_FILE):
        with (directory / name).open("rb") as file:
            digest.update(file_digest(file, blake2b).digest())
    return digest.digest()
