import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.server import engine_pool
from codemill.server.errors import ApiError
from codemill.server.model_entry import ModelDefinition
from codemill.server.registry import Registry
from codemill.server.served_model import ModelCard


class FakeEngine:
    """What the registry touches of a ServingEngine."""

    max_model_len = 2048
    tokenizer = SimpleNamespace(call_style="hermes")

    def __init__(self, spec: str | None) -> None:
        self.spec = spec
        self.is_closed = False
        self.is_alive = True
        self.num_users = 0
        self.adapters: list[str] = []
        self.metrics_seconds = 0.0

    async def add_adapter(self, name: str, directory: Path) -> None:
        await asyncio.sleep(0.01)
        if not directory.is_dir():
            raise CodemillError(f"{directory}: no such directory")
        self.adapters.append(name)

    async def metrics(self) -> dict[str, Any]:
        await asyncio.sleep(self.metrics_seconds)
        return {"running": len(self.adapters)}

    async def close(self, timeout: float) -> None:
        assert not self.num_users, "closed while it was used"
        self.is_closed = True


class FakeLoader:
    """Loads fake engines, each in `seconds`; waits for `gate` first, and fails for the specs in `broken`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()
        self.broken: dict[str | None, Exception] = {}
        self.engines: list[FakeEngine] = []
        self.num_loading = self.most_loading = 0

    def __call__(self, definition: ModelDefinition) -> Any:
        self.num_loading += 1
        self.most_loading = max(self.most_loading, self.num_loading)
        try:
            assert self.gate.wait(5)
            time.sleep(self.seconds)
            if definition.spec in self.broken:
                raise self.broken[definition.spec]
            self.engines.append(FakeEngine(definition.spec))
            return self.engines[-1]
        finally:
            self.num_loading -= 1

    @property
    def specs(self) -> list[str | None]:
        return [engine.spec for engine in self.engines]


ONE = [ModelDefinition("coder", "a/coder", ("gpt-4o", "gpt-5"))]
THREE = [ModelDefinition(name, f"x/{name}") for name in "abc"]


@pytest.fixture
def load() -> FakeLoader:
    return FakeLoader()


async def name_of(registry: Registry, name: str | None, hold: float = 0.0) -> str:
    async with registry.lease(name) as model:
        await asyncio.sleep(hold)
        return model.name


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come true")


@pytest.mark.parametrize("name", ["coder", "gpt-4o", "whatever", "", None])
def test_the_only_model_answers_to_any_name(load: FakeLoader, name: str | None) -> None:
    assert asyncio.run(name_of(Registry(ONE, load), name)) == "coder"


@pytest.mark.parametrize(
    ("definitions", "options"),
    [
        (ONE, {"strict_names": True}),
        ([*ONE, ModelDefinition("other", "b/other")], {}),
        ([ModelDefinition("coder", adapters={"sql": Path("sql")})], {}),
    ],
)
def test_an_unknown_name_is_404_where_it_could_mean_several_things(
    load: FakeLoader, definitions: list[ModelDefinition], options: dict[str, bool]
) -> None:
    with pytest.raises(ApiError, match="choose coder, ") as caught:
        asyncio.run(name_of(Registry(definitions, load, **options), "whatever"))
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert load.engines == []


def test_an_unknown_name_is_logged_once(load: FakeLoader, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(ONE, load)

    async def main() -> None:
        for number in range(300):
            await name_of(registry, "gpt-4-turbo")
            await name_of(registry, f"random {number}")

    asyncio.run(main())
    assert sum("gpt-4-turbo" in record.getMessage() for record in caplog.records) == 1
    assert len(caplog.records) <= 110, "a client can fill the log"


def test_two_things_of_one_name_are_refused(load: FakeLoader) -> None:
    with pytest.raises(UsageError, match="'gpt-4o'"):
        Registry([*ONE, ModelDefinition("gpt-4o")], load)
    with pytest.raises(UsageError, match="'coder'"):
        Registry([ModelDefinition("coder", adapters={"coder": Path("x")})], load)


def test_a_model_is_loaded_once_for_all_who_wait(load: FakeLoader) -> None:
    registry = Registry(ONE, load)
    load.seconds = 0.05

    async def main() -> list[str]:
        return await asyncio.gather(*[name_of(registry, "coder") for _ in range(20)])

    assert asyncio.run(main()) == ["coder"] * 20
    assert load.specs == ["a/coder"]


def test_models_load_one_after_another(load: FakeLoader) -> None:
    registry = Registry(THREE, load)
    load.seconds = 0.02

    async def main() -> list[str]:
        return await asyncio.gather(*[name_of(registry, name) for name in "abcabc"])

    assert asyncio.run(main()) == list("abcabc")
    assert (load.specs, load.most_loading) == (["x/a", "x/b", "x/c"], 1)


def test_the_first_model_loads_at_the_start_unless_lazy(load: FakeLoader) -> None:
    for is_lazy, specs in ((True, []), (False, ["x/a"])):
        registry = Registry(THREE, load, is_lazy=is_lazy)
        assert not registry.is_ready
        asyncio.run(registry.start())
        assert registry.is_ready
        assert load.specs == specs
        assert [card.is_loaded for card in registry.models()] == [not is_lazy, False, False]


@pytest.mark.parametrize("error", [CodemillError("no such file"), RuntimeError("no such file")])
def test_a_failed_load_gives_all_the_same_error_and_may_be_tried_again(load: FakeLoader, error: Exception) -> None:
    registry = Registry(ONE, load)
    load.broken["a/coder"] = error
    load.seconds = 0.05

    async def main() -> None:
        results = await asyncio.gather(*[name_of(registry, None) for _ in range(5)], return_exceptions=True)
        assert {type(result) for result in results} == {CodemillError}
        assert all("coder cannot be loaded: " in str(each) and "no such file" in str(each) for each in results)
        load.broken.clear()
        assert await name_of(registry, None) == "coder"

    asyncio.run(main())


def test_a_client_that_leaves_does_not_stop_a_load(load: FakeLoader) -> None:
    registry = Registry(ONE, load)
    load.gate.clear()

    async def main() -> None:
        waiting = [asyncio.create_task(name_of(registry, None)) for _ in range(3)]
        await until(lambda: load.num_loading == 1)
        waiting[0].cancel()
        waiting[1].cancel()
        await asyncio.sleep(0.01)
        load.gate.set()
        assert await waiting[2] == "coder"
        assert waiting[0].cancelled()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert registry._entries[0].is_idle, "those who left still count"

    asyncio.run(main())
    assert load.specs == ["a/coder"]


def test_an_idle_model_is_unloaded_and_loaded_again(load: FakeLoader) -> None:
    freed: list[bool] = []
    registry = Registry(ONE, load, idle_seconds=0.1, free=lambda: freed.append(True))

    async def main() -> None:
        await registry.start()
        async with registry.lease(None):
            await asyncio.sleep(0.3)
            assert not load.engines[0].is_closed, "unloaded while it was used"
        await until(lambda: load.engines[0].is_closed)
        assert registry.is_ready
        assert await registry.metrics() == {}
        assert registry.models()[0].max_model_len is None
        assert await name_of(registry, None) == "coder"
        await registry.close()

    asyncio.run(main())
    assert len(load.engines) == 2
    assert freed


def test_the_least_recently_used_idle_model_makes_room(load: FakeLoader) -> None:
    registry = Registry(THREE, load, max_loaded=2)

    async def main() -> None:
        await name_of(registry, "a")
        await name_of(registry, "b")
        await name_of(registry, "a")
        await name_of(registry, "c")
        assert [card.is_loaded for card in registry.models()] == [True, False, True]

    asyncio.run(main())
    assert [engine.is_closed for engine in load.engines] == [False, True, False]


def test_a_model_waits_for_a_place_until_another_is_idle(load: FakeLoader) -> None:
    registry = Registry(THREE, load, max_loaded=1)

    async def main() -> None:
        async with registry.lease("a"):
            waiting = asyncio.create_task(name_of(registry, "b"))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            assert load.specs == ["x/a"]
        assert await waiting == "b"

    asyncio.run(main())


def test_a_busy_model_leaves_in_the_end_for_one_that_waits(load: FakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that overlap without end must not keep another model out for ever."""
    monkeypatch.setattr(engine_pool, "PATIENCE", 0.1)
    registry = Registry(THREE, load, max_loaded=1)

    async def main() -> None:
        stop = asyncio.Event()

        async def keep_busy() -> None:
            while not stop.is_set():
                await name_of(registry, "a", hold=0.03)

        busy = []
        for _ in range(3):
            busy.append(asyncio.create_task(keep_busy()))
            await asyncio.sleep(0.01)
        assert await asyncio.wait_for(name_of(registry, "b", hold=0.02), 3) == "b"
        await until(lambda: load.specs.count("x/a") == 2)
        stop.set()
        await asyncio.wait_for(asyncio.gather(*busy), 3)

    asyncio.run(main())
    assert [engine.is_closed for engine in load.engines] == [True, True, False]


def test_a_model_that_was_to_leave_and_did_not_is_not_loaded_twice(
    load: FakeLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_pool, "PATIENCE", 0.05)
    registry = Registry(THREE, load, max_loaded=2)

    async def main() -> None:
        async with registry.lease("a"):
            held = registry.lease("b")
            await held.__aenter__()
            waiting = asyncio.create_task(name_of(registry, "c"))
            await until(lambda: registry._entries[0].is_leaving)
            again = asyncio.create_task(name_of(registry, "a"))
            await asyncio.sleep(0.02)
            await held.__aexit__(None, None, None)
            assert await asyncio.wait_for(asyncio.gather(waiting, again), 3) == ["c", "a"]

    asyncio.run(main())
    assert load.specs == ["x/a", "x/b", "x/c"]


def test_adapters_are_loaded_when_they_are_asked_for(load: FakeLoader, tmp_path: Path) -> None:
    definition = ModelDefinition("coder", adapters={"sql": tmp_path, "gone": tmp_path / "gone"})
    registry = Registry([definition], load)

    async def main() -> None:
        names = await asyncio.gather(*[name_of(registry, "sql") for _ in range(4)], name_of(registry, "coder"))
        assert names == ["sql"] * 4 + ["coder"]
        assert load.engines[0].adapters == ["sql"]
        async with registry.lease("sql") as model:
            assert (model.adapter, model.max_model_len, model.call_style) == ("sql", 2048, "hermes")
        for _ in range(2):
            with pytest.raises(CodemillError, match="no such directory"):
                await name_of(registry, "gone")
        (tmp_path / "gone").mkdir()
        assert await name_of(registry, "gone") == "gone"
        assert registry._entries[0].num_leases == 0

    asyncio.run(main())


def test_adapters_of_the_first_model_are_loaded_with_it(load: FakeLoader, tmp_path: Path) -> None:
    definitions = [ModelDefinition("a", adapters={"sql": tmp_path}), ModelDefinition("b", adapters={"x": tmp_path})]
    asyncio.run(Registry(definitions, load).start())
    assert [engine.adapters for engine in load.engines] == [["sql"]]
    broken = Registry([ModelDefinition("a", adapters={"sql": tmp_path / "gone"})], load)
    with pytest.raises(CodemillError, match="no such directory"):
        asyncio.run(broken.start())


def test_a_failed_load_is_logged_once_the_server_runs(load: FakeLoader, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(ONE, load)
    load.broken["a/coder"] = RuntimeError("out of luck")

    async def main() -> None:
        with pytest.raises(CodemillError):
            await registry.start()
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
        registry._pool.start()
        with pytest.raises(CodemillError):
            await name_of(registry, None)

    asyncio.run(main())
    (logged,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "out of luck" in logged.getMessage()
    assert logged.exc_info


def test_cards_name_models_aliases_and_adapters(load: FakeLoader) -> None:
    registry = Registry([ModelDefinition("coder", "a/coder", ("gpt",), {"sql": Path("/x/sql")})], load)
    created = registry.models()[0].created
    assert abs(created - time.time()) < 5
    assert registry.models() == [
        ModelCard("coder", created, False, None, None, "a/coder"),
        ModelCard("gpt", created, False, None, None, "a/coder", "coder"),
        ModelCard("sql", created, False, "coder", None, "/x/sql"),
    ]


def test_metrics_do_not_wait_for_a_busy_engine(load: FakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codemill.server.registry.METRICS_SECONDS", 0.05)
    registry = Registry(THREE, load)

    async def main() -> None:
        await name_of(registry, "a")
        await name_of(registry, "b")
        assert await registry.metrics() == {"a": {"running": 0}, "b": {"running": 0}}
        load.engines[1].metrics_seconds = 60
        load.engines[0].adapters.append("x")
        assert await registry.metrics() == {"a": {"running": 1}, "b": {"running": 0}}

    asyncio.run(main())


def test_closing_ends_what_waits_for_a_load(load: FakeLoader) -> None:
    registry = Registry(THREE, load, idle_seconds=60)
    load.gate.clear()

    async def main() -> None:
        registry._pool.start()
        waiting = [asyncio.create_task(name_of(registry, name)) for name in "ab"]
        await until(lambda: load.num_loading == 1)
        await registry.close(0.0)
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, ApiError)
            assert result.status == 503
        assert registry.is_loading
        with pytest.raises(ApiError, match="shutting down"):
            await name_of(registry, "c")
        load.gate.set()
        await until(lambda: not registry.is_loading)

    asyncio.run(main())


def test_close_closes_each_engine(load: FakeLoader) -> None:
    registry = Registry(THREE, load)

    async def main() -> None:
        await registry.start()
        await name_of(registry, "b")
        await registry.close()
        await registry.close()

    asyncio.run(main())
    assert [engine.is_closed for engine in load.engines] == [True, True]
    assert not registry.is_ready


def test_an_engine_that_died_is_replaced(load: FakeLoader) -> None:
    registry = Registry(ONE, load)

    async def main() -> None:
        await registry.start()
        async with registry.lease(None):
            load.engines[0].is_alive = False
            assert await asyncio.gather(*[name_of(registry, None) for _ in range(5)]) == ["coder"] * 5
        assert [engine.is_closed for engine in load.engines] == [True, False]
        assert registry._entries[0].num_leases == 0

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(5))
def test_no_engine_is_closed_under_a_request(load: FakeLoader, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random requests for five models of which two fit, with clients that leave, idle unloading and failing loads."""
    monkeypatch.setattr(engine_pool, "PATIENCE", 0.02)
    random = Random(seed)
    names = "abcde"
    definitions = [ModelDefinition(name, f"x/{name}", adapters={f"{name}-sql": Path("/")}) for name in names]
    registry = Registry(definitions, load, max_loaded=2, idle_seconds=0.02)
    served = failed = 0

    async def client() -> None:
        nonlocal served, failed
        for _ in range(12):
            name = random.choice(names) + random.choice(("", "-sql"))
            load.broken = {"x/e": CodemillError("broken")} if random.random() < 0.3 else {}
            try:
                async with registry.lease(name) as model:
                    engine: Any = model.engine
                    engine.num_users += 1
                    assert (engine.spec, model.name) == (f"x/{name[0]}", name)
                    assert sum(not each.is_closed for each in load.engines) <= 2
                    try:
                        await asyncio.sleep(random.random() * 0.01)
                        assert not engine.is_closed
                        served += 1
                    finally:
                        engine.num_users -= 1
            except CodemillError:
                failed += 1
            await asyncio.sleep(random.random() * 0.02)

    async def main() -> None:
        registry._pool.start()
        clients = [asyncio.create_task(client()) for _ in range(12)]
        await asyncio.sleep(0.05)
        for leaving in clients[:4]:
            leaving.cancel()
        await asyncio.wait_for(asyncio.gather(*clients[4:]), 20)
        await asyncio.gather(*clients[:4], return_exceptions=True)
        assert all(entry.num_leases == entry.num_waiting == 0 for entry in registry._entries)
        await until(lambda: all(engine.is_closed for engine in load.engines))
        await registry.close()

    asyncio.run(main())
    assert served + failed >= 8 * 12
    assert served > failed


def test_an_engine_that_exists_is_served() -> None:
    registry = Registry.of(FakeEngine("x"), "mine")  # type: ignore[arg-type]
    assert registry.is_ready
    assert asyncio.run(name_of(registry, "whatever")) == "mine"
    assert registry.models()[0].is_loaded
