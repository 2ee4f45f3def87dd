"""Model specs: the one notation in which a user names a model, and what each spec means."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from codemill.errors import CodemillError, UsageError
from codemill.hub import fetch
from codemill.presets import PRESETS, Preset, find_preset

EMBEDDED = Path(__file__).resolve().parent / "embedded"
RANDOM_PREFIX = "random:"
FORMS = "give a model directory, a Hugging Face id (org/name) or random:PRESET"
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: a directory, a repository on the Hub, or a preset to fill with random weights."""

    kind: Literal["embedded", "directory", "hub", "random"]
    name: str
    directory: Path | None = None
    preset: Preset | None = None

    def fetch(self, allow_patterns: Sequence[str]) -> Path:
        """The directory that holds the files which match `allow_patterns`; those of a hub model are downloaded.

        Raises CodemillError if the download fails, or for a random model, which has no files.
        """
        if self.kind == "hub":
            return fetch(self.name, allow_patterns)
        if self.directory is None:
            raise CodemillError(f"{self.name} has no files: its weights are random; {FORMS.split(' or ')[0]}")
        return self.directory


def resolve(spec: str | Path | None = None) -> ModelSource:
    """What a model spec means: None is the embedded model, otherwise random:PRESET, a directory or a hub id.

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
        raise UsageError(_why_not_a_file(path))
    if isinstance(spec, str) and _HUB_ID.fullmatch(name) and path.suffix != ".gguf":
        return ModelSource("hub", name)
    raise UsageError(f"{name}: no such directory; {_hint(name)}")


def _embedded() -> ModelSource:
    if not (EMBEDDED / "config.json").is_file():
        raise CodemillError(f"the embedded model is not installed ({EMBEDDED} holds no model): reinstall, or name one")
    return ModelSource("embedded", "embedded", directory=EMBEDDED)


def _why_not_a_file(path: Path) -> str:
    if path.suffix == ".gguf":
        return f"{path}: GGUF files are not supported yet; {FORMS}"
    return f"{path} is a file; give the model directory that holds it: {path.parent}"


def _hint(name: str) -> str:
    preset = PRESETS.get(name.lower())
    if preset is not None:
        return f"for the published weights say {preset.hub_id}, for random ones {RANDOM_PREFIX}{preset.name}"
    return FORMS
