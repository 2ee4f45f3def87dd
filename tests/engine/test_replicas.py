import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from codemill import LLM, SamplingParams
from codemill.engine.admission import QueueFull
from codemill.engine.prefix_router import MAX_EXTRA, PrefixRouter
from codemill.engine.replicas import Replicas
from codemill.engine.updates import StreamUpdate
from codemill.errors import CodemillError, UsageError
from codemill.models import load_model
from codemill.models.save import save_pretrained
from codemill.spec import EMBEDDED

CACHE_BYTES = 32 << 20
PROMPTS = [f"def function_{number}(value):\n" for number in range(8)]
ENDLESS = SamplingParams(temperature=0.0, max_tokens=900, ignore_eos=True)
BEREAVED = """
import sys, time
from codemill.engine.replicas import Replicas

if __name__ == "__main__":
    replicas = Replicas(num_replicas=1, kv_cache_bytes=1 << 20)
    print(*replicas.process_ids, flush=True)
    time.sleep(60)
"""


def greedy(max_tokens: int = 16) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(dtype="float32", kv_cache_bytes=CACHE_BYTES, seed=7)


@pytest.fixture(scope="module")
def replicas() -> Iterator[Replicas]:
    threads = torch.get_num_threads()
    with Replicas(None, 2, threads, seed=7, max_waiting=200, dtype="float32", kv_cache_bytes=CACHE_BYTES) as replicas:
        yield replicas


async def collect(updates: AsyncIterator[StreamUpdate]) -> list[StreamUpdate]:
    return [update async for update in updates]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.01)


def is_running(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def num_generated(replicas: Replicas) -> list[int]:
    """Tokens that each replica has generated, of finished requests."""
    return [replica.control("metrics").result(10)["generated_tokens"] for replica in replicas._replicas]


# First of those that use `replicas`: without seeds results depend on how many requests came before.
def test_results_are_those_of_one_llm_whatever_the_replica(llm: LLM, replicas: Replicas) -> None:
    sampled = SamplingParams(temperature=1.0, max_tokens=16, ignore_eos=True, n=2)
    for params in (sampled, greedy()):
        found, expected = replicas.generate_all(PROMPTS, params), llm.generate(PROMPTS, params)
        for one, other in zip(found, expected, strict=True):
            assert [each.token_ids for each in one.outputs] == [each.token_ids for each in other.outputs]
            assert [each.text for each in one.outputs] == [each.text for each in other.outputs]
    assert min(num_generated(replicas)) > 0, "one replica did it all"


def test_streams_join_to_what_generate_gives(llm: LLM, replicas: Replicas) -> None:
    async def main() -> list[list[StreamUpdate]]:
        return await asyncio.gather(*[collect(replicas.stream(each, greedy())) for each in PROMPTS])

    for updates, expected in zip(asyncio.run(main()), llm.generate(PROMPTS, greedy()), strict=True):
        assert updates[0].progress is not None
        assert "".join(update.text for update in updates) == expected.outputs[0].text
        assert sum(bool(update.text) for update in updates) > 5
        assert updates[-1].metrics is not None
        assert updates[-1].finish_reason == "length"


def test_a_prompt_goes_where_its_beginning_is_cached(replicas: Replicas) -> None:
    history = "# A conversation that grows from turn to turn, as an agent's does.\n" * 4

    async def main() -> list[float]:
        shares, text = [], history
        for _ in range(4):
            text += "print('another turn')\n" * 2
            output = await replicas.generate(text, greedy(4))
            shares.append(output.metrics.num_cached_tokens / output.metrics.num_prompt_tokens)
        return shares

    first, *others = asyncio.run(main())
    assert first < 0.2
    assert min(others) > 0.6


def test_the_router_leaves_a_busy_replica_alone() -> None:
    router, names = PrefixRouter(3), [bytes([number]) for number in range(6)]
    assert router.choose(names, [2, 1, 1]) == 1
    assert router.choose([*names[:3], b"other"], [0, 1, 0]) == 1
    assert router.choose(names, [0, MAX_EXTRA, 0]) == 1
    assert router.choose(names, [1, MAX_EXTRA + 1, 0]) == 2
    assert router.choose(names, [0, None, MAX_EXTRA]) == 2
    router.forget(1)
    assert router.choose(names, [0, 0, 4]) == 2
    router.forget(2)
    assert router.choose(names, [1, 1, 0]) == 2


def test_cancelled_and_overdue_requests_end_in_the_replica(replicas: Replicas) -> None:
    async def main() -> None:
        reading = asyncio.create_task(collect(replicas.stream("cancelled", ENDLESS)))
        late = asyncio.create_task(replicas.generate("late", ENDLESS, deadline=0.2))
        await asyncio.sleep(0.2)
        reading.cancel()
        output = (await late).outputs[0]
        assert (output.finish_reason, output.stop_reason) == ("abort", "deadline")
        assert output.token_ids

    before = asyncio.run(replicas.metrics())["requests_finished"]["abort"]
    asyncio.run(main())
    until(lambda: not replicas._homes)
    assert asyncio.run(replicas.metrics())["requests_finished"]["abort"] == before + 2


def test_wrong_requests_and_full_queues_are_refused_before_the_first_update(replicas: Replicas) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="vocabulary"):
            await anext(replicas.stream([10**9]))
        tasks = [asyncio.create_task(replicas.generate(each, ENDLESS)) for each in ["x"] * 264]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await anext(replicas.stream("one too many"))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    until(lambda: not replicas._homes)


def test_weights_are_mapped_and_so_shared(replicas: Replicas, tmp_path: Path) -> None:
    with Replicas(num_replicas=1, kv_cache_bytes=1 << 20) as one:
        (process_id,) = one.process_ids
        one.generate_all("x", greedy(1))
        lines = Path(f"/proc/{process_id}/smaps").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith("model.safetensors"))
    sizes = {line.split()[0]: int(line.split()[1]) for line in lines[start + 1 : start + 20]}
    assert sizes["Rss:"] > 10_000
    assert sizes["Private_Dirty:"] == 0


def test_a_dead_replica_fails_its_requests_and_is_replaced(llm: LLM, replicas: Replicas, tmp_path: Path) -> None:
    changed = load_model(EMBEDDED, "float32")
    changed.model.embed_tokens.weight.data.mul_(-1)
    save_pretrained(changed, tmp_path)
    before = replicas.process_ids

    async def main() -> list[Any]:
        await replicas.update_weights(tmp_path)
        tasks = [asyncio.create_task(replicas.generate(f"{number} x", greedy(400))) for number in range(4)]
        await asyncio.sleep(0.3)
        victim = replicas._homes[next(iter(replicas._homes))]
        os.kill(victim.process.pid or 0, signal.SIGKILL)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*map(asyncio.wrap_future, [each.ready for each in replicas._replicas]))
        return outcomes

    outcomes = asyncio.run(main())
    errors = [each for each in outcomes if isinstance(each, BaseException)]
    assert len(errors) == 2
    assert all(isinstance(error, CodemillError) and "was killed by signal 9" in str(error) for error in errors)
    assert sum(one != other for one, other in zip(before, replicas.process_ids, strict=True)) == 1
    assert replicas.is_alive

    llm.update_weights(dict(changed.named_parameters()))
    expected = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, greedy())]
    found = replicas.generate_all(PROMPTS, greedy())
    assert [output.outputs[0].token_ids for output in found] == expected, "the new replica has the old weights"
    assert min(num_generated(replicas)) > 0


def test_a_replica_that_cannot_start_says_why() -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(UsageError, match="unknown engine option"):
        Replicas(num_replicas=1, nonsense=1)
    assert set(multiprocessing.active_children()) <= before


def test_no_replica_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    script = tmp_path / "bereaved.py"
    script.write_text(BEREAVED)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    process_ids = [int(word) for word in parent.stdout.readline().split()]
    assert process_ids
    assert all(map(is_running, process_ids))
    parent.kill()
    parent.wait()
    until(lambda: not any(map(is_running, process_ids)), 5.0)


def test_close_ends_all_processes(replicas: Replicas) -> None:
    process_ids = replicas.process_ids

    async def main() -> str | None:
        running = asyncio.create_task(replicas.generate("x", ENDLESS))
        await asyncio.sleep(0.1)
        await replicas.close(timeout=0.2)
        return (await running).outputs[0].finish_reason

    assert asyncio.run(main()) == "abort"
    assert not any(is_running(each or 0) for each in process_ids)
    with pytest.raises(CodemillError, match="closed"):
        asyncio.run(replicas.generate("x"))
