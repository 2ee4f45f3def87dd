"""LoRA adapters by name, from which requests choose."""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from codemill.errors import UsageError
from codemill.models.decoder import CausalLM
from codemill.models.dora import weight_of
from codemill.models.lora import LoraAdapter

AdapterChoice = str | Sequence[str | None] | None


class Adapters:
    """The adapters that are loaded for one model."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self._by_name: dict[str, LoraAdapter] = {}

    @property
    def names(self) -> list[str]:
        return list(self._by_name)

    def add(self, name: str, directory: str | Path) -> None:
        """Load an adapter that PEFT saved; one of that name is replaced for requests to come.

        Raises UsageError for an empty name, CodemillError naming the file for what cannot be loaded.
        """
        if not name or not isinstance(name, str):
            raise UsageError(f"the adapter's name is {name!r}: give some text")
        if not isinstance(directory, str | Path):
            raise UsageError(f"the adapter's directory is of type {type(directory).__name__}: give a path")
        model, path = self._model, Path(directory).expanduser()
        self._by_name[name] = LoraAdapter.load(
            path, model.config, model.dtype, model.device, name, partial(weight_of, model)
        )

    def remove(self, name: str) -> None:
        """Forget an adapter; requests that run with it go on. Raises UsageError if there is none of that name."""
        self.get(name)
        del self._by_name[name]

    def get(self, name: str | None) -> LoraAdapter | None:
        """The adapter of that name; None for none. Raises UsageError with the closest names."""
        if name is None:
            return None
        if name not in self._by_name:
            close = get_close_matches(name, self._by_name, n=3) or self.names
            hint = f"choose one of {', '.join(close)}" if close else "none is loaded, add_adapter loads one"
            raise UsageError(f"unknown adapter {name!r}: {hint}")
        return self._by_name[name]

    def for_each(self, choice: AdapterChoice, num_prompts: int) -> list[LoraAdapter | None]:
        """An adapter or None for each prompt, given one name for all or a list with one for each."""
        names = [choice] * num_prompts if choice is None or isinstance(choice, str) else list(choice)
        if len(names) != num_prompts:
            raise UsageError(f"{len(names)} adapters for {num_prompts} prompts: give one for all, or one for each")
        return [self.get(name) for name in names]
