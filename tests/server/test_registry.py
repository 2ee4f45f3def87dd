import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.server.errors import ApiError
from codemill.server.model_entry import ModelDefinition
from codemill.server.registry import Registry


class FakeEngine:
    """What the registry touches of a ServingEngine."""

    max_model_len = 2048
    tokenizer = SimpleNamespace(call_style="hermes")

    def __init__(self, spec: str | None) -> None:
        self.spec = spec
        self.is_closed = False
        self.adapters: list[str] = []
        self.metrics_seconds = 0.0

    async def add_adapter(self, name: str, directory: Path) -> None:
        await asyncio.sleep(0)
        if not Path(directory).is_dir():
            raise CodemillError(f"{directory}: no such directory")
        self.adapters.append(name)

    async def metrics(self) -> dict[str, Any]:
        await asyncio.sleep(self.metrics_seconds)
        return {"running": len(self.adapters)}

    async def close(self, timeout: float) -> None:
        self.is_closed = True


ONE = [ModelDefinition("coder", "a/coder", ("gpt-4o",))]


def registry(definitions: list[ModelDefinition], **options: Any) -> Registry:
    return Registry(definitions, FakeEngine, **options)


async def leased(of: Registry, name: str | None) -> str:
    async with of.lease(name) as model:
        return model.name


@pytest.mark.parametrize("name", ["coder", "gpt-4o", "whatever", "", None])
def test_the_only_model_answers_to_any_name(name: str | None) -> None:
    assert asyncio.run(leased(registry(ONE), name)) == "coder"


def test_strict_names_and_several_models_give_404() -> None:
    both = [*ONE, ModelDefinition("other", "b/other")]
    for strict in (registry(ONE, strict_names=True), registry(both)):
        with pytest.raises(ApiError, match="choose coder, gpt-4o") as caught:
            asyncio.run(leased(strict, "whatever"))
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_two_things_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="'gpt-4o'"):
        registry([*ONE, ModelDefinition("gpt-4o")])
