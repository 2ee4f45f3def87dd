"""Which models and adapters the arguments of `codemill serve` name."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.commands.options import parse_speculative
from codemill.engine_config import SpeculativeConfig
from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill.server.model_entry import ModelDefinition


def define_models(
    spec: str | None, models: Sequence[str], loras: Sequence[str], names: Sequence[str], speculative: str | None = None
) -> "list[ModelDefinition]":
    """The first model is `spec`, or where that is None the first of `models`, or else the embedded one.

    models: `[NAME=]SPEC`. loras: `NAME=DIRECTORY[@MODEL]`. names: of the first model, its aliases after the first.
    speculative: how drafts are made; a draft model or head is the first model's only. Raises UsageError or
    CodemillError for what can be known to be wrong before anything is loaded.
    """
    from codemill.server.model_loading import check_definition

    defined = [_define(text) for text in models]
    if spec is not None or not defined:
        defined.insert(0, _named(None, spec))
    if names:
        defined[0] = replace(defined[0], name=names[0], aliases=tuple(dict.fromkeys(names[1:])))
    defined = _with_adapters(defined, loras)
    for definition in defined:
        check_definition(definition)
    return _with_drafts(defined, parse_speculative(speculative))


def _define(text: str) -> "ModelDefinition":
    """`[NAME=]SPEC`; a path that exists may have a = in it."""
    name, has_name, spec = text.partition("=")
    if not has_name or Path(text).expanduser().exists():
        return _named(None, text)
    if not name or not spec:
        raise UsageError(f"--model {text}: give NAME=SPEC")
    return _named(name, spec)


def _named(name: str | None, spec: str | None) -> "ModelDefinition":
    from codemill.server.model_entry import ModelDefinition
    from codemill.server.model_loading import model_name

    spec = None if spec == "embedded" and not Path(spec).exists() else spec
    return ModelDefinition(name or model_name(spec), spec)


def _with_adapters(defined: "list[ModelDefinition]", loras: Sequence[str]) -> "list[ModelDefinition]":
    adapters: list[dict[str, Path]] = [{} for _ in defined]
    for text in loras:
        name, _, directory = text.partition("=")
        if not name or not directory:
            raise UsageError(f"--lora {text}: give NAME=DIRECTORY, or NAME=DIRECTORY@MODEL")
        path, number = _adapter_target(directory, [each.name for each in defined])
        if name in adapters[number]:
            raise UsageError(f"--lora {text}: there is an adapter {name} already; give each a name of its own")
        adapters[number][name] = path
    return [replace(each, adapters=own) for each, own in zip(defined, adapters, strict=True)]


def _adapter_target(text: str, names: Sequence[str]) -> tuple[Path, int]:
    """The directory, and which model's adapter it holds; a path that exists may have an @ in it."""
    directory, at, model = text.rpartition("@")
    if not at or Path(text).expanduser().is_dir():
        return Path(text).expanduser(), 0
    if model not in names:
        raise UsageError(f"--lora ...@{model}: no model is called that; choose {', '.join(names)}")
    return Path(directory).expanduser(), names.index(model)


def _with_drafts(defined: "list[ModelDefinition]", how: SpeculativeConfig | None) -> "list[ModelDefinition]":
    if how is None:
        return defined
    count = len(defined) if how.method == "ngram" else 1
    drafting = [replace(each, options={**each.options, "speculative": how}) for each in defined[:count]]
    return drafting + defined[count:]
