"""The checkpoint's own defaults for generation, read from its `generation_config.json`. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codemill.config import read_json_object
from codemill.engine.sampling_params import SamplingParams
from codemill.errors import CodemillError, UsageError

GREEDY_BELOW = 1e-5
_SHAPING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Distribution:
    """How the distribution of the next token is shaped, nothing left open; temperature 0 is greedy, top_k 0 all."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def is_filtered(self) -> bool:
        """Whether some tokens cannot be drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


@dataclass(frozen=True)
class GenerationConfig:
    """Defaults of a checkpoint; None where it has none. Names follow `generation_config.json`."""

    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def load(cls, directory: Path) -> "GenerationConfig":
        """Read `directory/generation_config.json`; a checkpoint without one has no defaults.

        Raises CodemillError naming the file and the value that makes no sense.
        """
        path = directory / "generation_config.json"
        if not path.is_file():
            return cls()
        return cls.from_dict(read_json_object(path), str(path))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = "generation_config.json") -> "GenerationConfig":
        """Parse the mapping; keys about anything but sampling, length and end of text are other libraries' business."""
        values: dict[str, Any] = {name: raw.get(name) for name in _SHAPING}
        do_sample, max_new_tokens = raw.get("do_sample") or False, raw.get("max_new_tokens")
        if not isinstance(do_sample, bool):
            raise CodemillError(f"{source}: do_sample = {do_sample!r}: must be true or false")
        try:
            SamplingParams(**values, max_tokens=max_new_tokens)
        except UsageError as error:
            raise CodemillError(f"{source}: {error}") from None
        eos = as_token_ids(raw.get("eos_token_id"), source)
        return cls(do_sample=do_sample, max_new_tokens=max_new_tokens, eos_token_ids=eos, **values)

    def distribution(self, params: SamplingParams) -> Distribution:
        """What `params` asks for, completed by these defaults.

        A request that gives a temperature gets the other defaults too; one that gives none samples only if the
        checkpoint does.
        """
        temperature = params.temperature
        if temperature is None:
            temperature = (1.0 if self.temperature is None else self.temperature) if self.do_sample else 0.0
        return Distribution(
            temperature=temperature,
            top_k=max(0, _first(params.top_k, self.top_k, 0)),
            top_p=_first(params.top_p, self.top_p, 1.0),
            min_p=_first(params.min_p, self.min_p, 0.0),
            repetition_penalty=_first(params.repetition_penalty, self.repetition_penalty, 1.0),
        )


def as_token_ids(value: Any, source: str) -> tuple[int, ...]:
    """`eos_token_id` as checkpoints write it (nothing, an id, or a list of them) -> ids."""
    ids = () if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in ids):
        raise CodemillError(f"{source}: eos_token_id = {value!r}: must be a token id or a list of them")
    return ids


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
