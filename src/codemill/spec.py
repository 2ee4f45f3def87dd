"""Model specs: the one notation in which a user names a model, and what each spec means."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from codemill.config import ModelConfig, read_json_object
from codemill.errors import CodemillError, UsageError
from codemill.hub import fetch
from codemill.presets import PRESETS, Preset, find_preset

if TYPE_CHECKING:
    from codemill.gguf.container import GgufFile

EMBEDDED = Path(__file__).resolve().parent / "embedded"
RANDOM_PREFIX = "random:"
FORMS = "give a model directory, a Hugging Face id (org/name), a .gguf file or random:PRESET"
CONFIG_FILES = ("config.json", "generation_config.json")
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: a directory, a GGUF file, a repository on the Hub, or a preset for random weights."""

    kind: Literal["embedded", "directory", "gguf", "hub", "random"]
    name: str
    directory: Path | None = None
    preset: Preset | None = None
    file: Path | None = None

    @cached_property
    def gguf(self) -> "GgufFile | None":
        """The metadata and list of tensors, if this is a GGUF file. Raises CodemillError if it is corrupt."""
        from codemill.gguf.container import GgufFile

        return GgufFile.open(self.file) if self.file is not None else None

    def load_config(self) -> ModelConfig:
        """The network's configuration. Raises CodemillError for what is wrong with the file that says it."""
        if self.preset is not None:
            return self.preset.config
        if self.gguf is not None:
            from codemill.gguf.config import read_config

            return read_config(self.gguf)
        return ModelConfig.load(self.fetch(CONFIG_FILES))

    def load_generation_config(self) -> tuple[dict[str, Any], str]:
        """The keys of its `generation_config.json`, none where it has no defaults, and the file that says them."""
        if self.preset is not None:
            return {}, self.name
        if self.gguf is not None:
            from codemill.gguf.config import read_generation_config

            return read_generation_config(self.gguf), str(self.gguf.path)
        path = self.fetch(CONFIG_FILES) / "generation_config.json"
        return (read_json_object(path) if path.is_file() else {}), str(path)

    def fetch(self, allow_patterns: Sequence[str]) -> Path:
        """The directory that holds the files which match `allow_patterns`; those of a hub model are downloaded.

        Raises CodemillError if the download fails, or for a model that has no such files.
        """
        if self.kind == "hub":
            return fetch(self.name, allow_patterns)
        if self.kind == "gguf":
            raise CodemillError(f"{self.name} is a single file; give a model directory")
        if self.directory is None:
            raise CodemillError(f"{self.name} has no files: its weights are random; give a model directory")
        return self.directory


def resolve(spec: str | Path | None = None) -> ModelSource:
    """What a model spec means: None is the embedded model, otherwise random:PRESET, a directory, a file or a hub id.

    An existing directory wins over a hub id of the same spelling. Nothing is downloaded here. Raises UsageError for
    a spec that means nothing, CodemillError if the embedded model is not installed.
    """
    if spec is None:
        return _embedded()
    if not isinstance(spec, str | PathLike):
        raise UsageError(f"the model spec is of type {type(spec).__name__}: {FORMS}")
    name = str(spec)
    if not name.strip():
        raise UsageError(f"the model spec is empty: {FORMS}")
    if name.startswith(RANDOM_PREFIX):
        return ModelSource("random", name, preset=find_preset(name.removeprefix(RANDOM_PREFIX)))
    path = Path(spec).expanduser()
    if path.is_dir():
        return ModelSource("directory", name, directory=path)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UsageError(f"{path} is a file; give the model directory that holds it: {path.parent}")
        return ModelSource("gguf", name, file=path)
    if isinstance(spec, str) and _HUB_ID.fullmatch(name) and path.suffix.lower() != ".gguf":
        return ModelSource("hub", name)
    what = "file" if path.suffix.lower() == ".gguf" else "directory"
    raise UsageError(f"{name}: no such {what}; {_hint(name)}")


def _embedded() -> ModelSource:
    if not (EMBEDDED / "config.json").is_file():
        raise CodemillError(f"the embedded model is not installed ({EMBEDDED} holds no model): reinstall, or name one")
    return ModelSource("embedded", "embedded", directory=EMBEDDED)


def _hint(name: str) -> str:
    preset = PRESETS.get(name.lower())
    if preset is not None:
        return f"for the published weights say {preset.hub_id}, for random ones {RANDOM_PREFIX}{preset.name}"
    return FORMS
