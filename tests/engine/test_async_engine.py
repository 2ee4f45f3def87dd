import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from codemill import LLM, SamplingParams
from codemill.engine import serving
from codemill.engine.admission import Admission, QueueFull
from codemill.engine.async_engine import AsyncEngine
from codemill.engine.outputs import RequestMetrics
from codemill.engine.replicas import Replicas
from codemill.engine.updates import StreamUpdate
from codemill.errors import CodemillError, UsageError
from codemill.models.save import save_pretrained

PROMPTS = ["def fibonacci(n):\n", "class Stack:\n", "import os\n\n\ndef main():\n", "for i in range(10):\n"]
ENDLESS = SamplingParams(temperature=0.0, max_tokens=900, ignore_eos=True)


def greedy(max_tokens: int = 24, **changes: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **changes)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(dtype="float32", kv_cache_bytes=64 << 20, max_num_seqs=4)


@pytest.fixture
def engine(llm: LLM) -> Any:
    with AsyncEngine(llm, keep_alive=5.0) as engine:
        yield engine


async def collect(updates: AsyncIterator[StreamUpdate]) -> list[StreamUpdate]:
    return [update async for update in updates]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come true")


async def first_text(updates: AsyncIterator[StreamUpdate]) -> None:
    async for update in updates:
        if update.text:
            return


def is_idle(llm: LLM) -> bool:
    return llm.engine.is_idle and llm.engine.cache.blocks.num_used == 0


def test_streams_join_to_what_generate_gives(llm: LLM, engine: AsyncEngine) -> None:
    expected = [output.outputs[0] for output in llm.generate(PROMPTS, greedy(logprobs=2))]

    async def main() -> list[list[StreamUpdate]]:
        return await asyncio.gather(*[collect(engine.stream(each, greedy(logprobs=2))) for each in PROMPTS])

    for updates, whole in zip(asyncio.run(main()), expected, strict=True):
        news = [update for update in updates if update.progress is None]
        assert "".join(update.text for update in news) == whole.text
        assert [token for update in news for token in update.token_ids] == whole.token_ids
        logprobs = [value for update in news for value in update.logprobs or []]
        assert logprobs == pytest.approx(whole.logprobs, abs=1e-3)
        assert sum(len(update.top_logprobs or []) for update in news) == len(whole.token_ids)
        assert [update.finish_reason for update in news] == [None] * (len(news) - 1) + ["length"]
        assert len(news) > 5, "the text came in one piece"
        assert updates[-1].metrics is not None
        assert updates[-1].metrics.num_output_tokens == 24
        assert updates[-1].output is not None
        assert updates[-1].output.outputs[0].text == whole.text


def test_samples_of_one_request_come_interleaved(llm: LLM, engine: AsyncEngine) -> None:
    params = SamplingParams(temperature=1.0, seed=3, n=3, max_tokens=20, ignore_eos=True)
    (expected,) = llm.generate("def parse(", params)
    updates = asyncio.run(collect(engine.stream("def parse(", params)))
    texts, ends = defaultdict(str), []
    order = [update.index for update in updates if update.text]
    for update in updates:
        texts[update.index] += update.text
        ends += [update.index] if update.finish_reason else []
    assert [texts[i] for i in range(3)] == [sample.text for sample in expected.outputs]
    assert len(set(texts.values())) > 1
    assert sorted(ends) == [0, 1, 2]
    assert order.index(2) < len(order) - 1 - order[::-1].index(0), "one sample after the other"
    assert [update.output is not None for update in updates] == [False] * (len(updates) - 1) + [True]


def test_generate_gives_all_that_was_asked(llm: LLM, engine: AsyncEngine) -> None:
    params = SamplingParams(
        temperature=1.0, seed=5, n=2, best_of=4, max_tokens=8, logprobs=1, prompt_logprobs=1, stop=["\n\n"]
    )
    (expected,) = llm.generate("def add(a, b):\n", params)
    found = asyncio.run(engine.generate("def add(a, b):\n", params))
    assert [each.token_ids for each in found.outputs] == [each.token_ids for each in expected.outputs]
    assert [each.text for each in found.outputs] == [each.text for each in expected.outputs]
    assert found.prompt_logprobs is not None
    assert len(found.prompt_logprobs) == len(found.prompt_token_ids)


def test_progress_comes_at_once_then_as_the_prompt_is_computed(llm: LLM, engine: AsyncEngine) -> None:
    async def main() -> tuple[list[StreamUpdate], int]:
        running = [asyncio.create_task(collect(engine.stream(each, greedy(60)))) for each in PROMPTS]
        await until(lambda: len(llm.engine.scheduler.running) == 4 and engine.num_waiting == 0)
        waiting = collect(engine.stream("def last(", greedy(2)))
        task = asyncio.create_task(waiting)
        await until(lambda: engine.num_waiting == 1)
        num_waiting = engine.num_waiting
        updates = await task
        await asyncio.gather(*running)
        return updates, num_waiting

    updates, num_waiting = asyncio.run(main())
    progress = [update.progress for update in updates if update.progress is not None]
    assert num_waiting == 1
    assert progress[0].num_ahead == 0
    assert progress[0].num_computed == 0
    assert progress[0].num_prompt_tokens == len(llm.tokenizer.encode("def last("))
    texts_from = next(i for i, update in enumerate(updates) if update.progress is None)
    assert all(update.progress is None for update in updates[texts_from:])
    assert engine.num_waiting == 0


def test_silence_is_filled_with_progress(llm: LLM) -> None:
    async def main(engine: AsyncEngine) -> list[StreamUpdate]:
        await engine.sleep()
        task = asyncio.create_task(collect(engine.stream("def f(", greedy(2))))
        await asyncio.sleep(0.3)
        assert not task.done()
        await engine.wake()
        return await task

    with AsyncEngine(llm, keep_alive=0.05) as engine:
        updates = asyncio.run(main(engine))
    assert sum(update.progress is not None for update in updates) >= 4
    assert updates[-1].finish_reason == "length"


@pytest.mark.parametrize("way", ["cancel", "close", "abort"])
def test_what_nobody_wants_is_stopped_and_stays_cached(llm: LLM, engine: AsyncEngine, way: str) -> None:
    prompt = f"def {way}(values, first, second):\n    total = 0\n    for value in values:\n        total += "

    async def main() -> list[StreamUpdate]:
        updates = engine.stream(prompt, ENDLESS, request_id="r")
        await first_text(updates)
        if way == "close":
            await updates.aclose()
            return []
        reading = asyncio.create_task(collect(updates))
        if way == "abort":
            engine.abort("r")
            return await reading
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        return []

    async def both() -> RequestMetrics:
        rest = await main()
        if way == "abort":
            assert rest[-1].finish_reason == "abort"
            assert rest[-1].output is not None
            assert 0 < len(rest[-1].output.outputs[0].token_ids) < 900
        await until(lambda: is_idle(llm))
        return (await engine.generate(prompt, greedy(1))).metrics

    metrics = asyncio.run(both())
    block_size = llm.engine.cache.shape.block_size
    assert metrics.num_cached_tokens == (metrics.num_prompt_tokens - 1) // block_size * block_size > 0


def test_an_abort_counts_while_the_prompt_is_tokenized(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LONG_PROMPT", 1)

    async def main() -> str:
        task = asyncio.create_task(engine.generate("value = ", ENDLESS, request_id="r"))
        await asyncio.sleep(0)
        engine.abort("r")
        return (await task).outputs[0].finish_reason

    assert asyncio.run(main()) == "abort"


def test_aborting_what_is_not_there_is_an_error(engine: AsyncEngine) -> None:
    with pytest.raises(UsageError, match="no request 'nothing'"):
        engine.abort("nothing")


def test_the_deadline_ends_running_and_waiting_requests(llm: LLM, engine: AsyncEngine) -> None:
    async def main() -> list[Any]:
        requests = [engine.generate(each, ENDLESS, deadline=0.2) for each in PROMPTS]
        return await asyncio.gather(*requests, engine.generate("waits", ENDLESS, deadline=0.1))

    *running, waiting = asyncio.run(main())
    for output in running:
        (sample,) = output.outputs
        assert (sample.finish_reason, sample.stop_reason) == ("abort", "deadline")
        assert 0 < len(sample.token_ids) < 900
        assert sample.text
    assert waiting.outputs[0].token_ids == []
    assert waiting.outputs[0].stop_reason == "deadline"
    assert is_idle(llm)
    with pytest.raises(UsageError, match="deadline = 0"):
        asyncio.run(engine.generate("x", deadline=0))


def test_a_full_queue_refuses_at_once(llm: LLM) -> None:
    async def main(engine: AsyncEngine) -> QueueFull:
        await engine.generate("x", greedy(2))
        tasks = [asyncio.create_task(collect(engine.stream(each, ENDLESS))) for each in [*PROMPTS, "a", "b"]]
        await until(lambda: engine.num_waiting == 2)
        with pytest.raises(QueueFull) as caught:
            await anext(engine.stream("c", ENDLESS))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.generate("c", greedy(2))
        return caught.value

    with AsyncEngine(llm, max_waiting=2) as engine:
        error = asyncio.run(main(engine))
    assert error.num_waiting == 2
    assert error.retry_after == 1


def test_retry_after_follows_what_was_measured() -> None:
    admission = Admission(max_waiting=0, num_places=2)
    for _ in range(50):
        admission.note_finished(RequestMetrics(1, 1, 1.0, total_seconds=70.0, queue_seconds=10.0))
    admission.check(num_waiting=0, num_running=1)
    with pytest.raises(QueueFull, match="try again in 30 s") as caught:
        admission.check(num_waiting=0, num_running=2)
    assert caught.value.retry_after == 30


@pytest.mark.parametrize(
    ("num_waiting", "num_running", "said"),
    [
        (4, 0, "2 requests wait already: try again in 5 s"),  # for two of the four there is a place
        (3, 1, "2 requests wait already: try again in 5 s"),
        (2, 2, "2 requests wait already: try again in 3 s"),
        (3, 0, None),
        (1, 2, None),
    ],
)
def test_who_is_about_to_run_does_not_wait(num_waiting: int, num_running: int, said: str | None) -> None:
    admission = Admission(max_waiting=2, num_places=2)
    if said is None:
        admission.check(num_waiting, num_running)
        return
    with pytest.raises(QueueFull) as caught:
        admission.check(num_waiting, num_running)
    assert str(caught.value) == said
    assert caught.value.num_waiting == 2


def test_without_a_queue_the_error_does_not_speak_of_one() -> None:
    with pytest.raises(QueueFull, match=r"^all places are taken, and none may wait: try again in 5 s$"):
        Admission(max_waiting=0, num_places=2).check(num_waiting=2, num_running=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_waiting": -1}, "max_waiting = -1: must be an integer of at least 0"),
        ({"max_waiting": 2.5}, "max_waiting = 2.5: must be"),
        ({"max_waiting": "3"}, "max_waiting = '3': must be"),
        ({"max_waiting": True}, "max_waiting = True: must be"),
        ({"keep_alive": 0}, "keep_alive = 0: must be a number of seconds above 0"),
        ({"keep_alive": float("nan")}, "keep_alive = nan: must be"),
        ({"keep_alive": None}, "keep_alive = None: must be"),
        ({"keep_alive": "5"}, "keep_alive = '5': must be"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(llm: LLM, options: dict[str, Any], said: str) -> None:
    num_threads = threading.active_count()
    for start in (lambda: AsyncEngine(llm, **options), lambda: Replicas(None, **options)):
        with pytest.raises(UsageError) as caught:
            start()
        assert said in str(caught.value)
    assert threading.active_count() == num_threads


def test_a_failed_step_fails_those_who_ran_and_nobody_else(
    llm: LLM, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = llm.engine.runner
    run = runner.run

    def fail_once(*args: Any) -> Any:
        monkeypatch.setattr(runner, "run", run)
        raise RuntimeError("out of luck")

    async def main() -> list[Any]:
        running = [asyncio.create_task(engine.generate(each, ENDLESS)) for each in PROMPTS]
        await until(lambda: len(llm.engine.scheduler.running) == 4)
        waiting = asyncio.create_task(engine.generate("def waits(", greedy(3)))
        await until(lambda: len(llm.engine.scheduler.waiting) == 1)
        monkeypatch.setattr(runner, "run", fail_once)
        return await asyncio.gather(*running, waiting, return_exceptions=True)

    *failed, served = asyncio.run(main())
    assert [str(error) for error in failed] == ["a step of the engine failed: RuntimeError: out of luck"] * 4
    assert all(isinstance(error, CodemillError) for error in failed)
    assert served.outputs[0].finish_reason == "length"
    assert is_idle(llm)


def test_a_dead_loop_fails_everybody(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    engine = AsyncEngine(llm)
    assert engine.is_alive

    async def main() -> list[Any]:
        running = asyncio.create_task(engine.generate("def f(", ENDLESS))
        await until(lambda: len(llm.engine.scheduler.running) == 1)
        with monkeypatch.context() as patch:
            patch.setattr(engine._loop._live, "overdue", None)
            outcomes = await asyncio.gather(running, return_exceptions=True)
        later = await asyncio.gather(engine.generate("x"), engine.metrics(), return_exceptions=True)
        return [*outcomes, *later]

    for outcome in asyncio.run(main()):
        assert isinstance(outcome, CodemillError)
        assert "thread has ended because of an error" in str(outcome)
    assert not engine.is_alive
    engine.shutdown()
    for sequence in list(llm.engine.scheduler.running):
        llm.engine.scheduler.remove(sequence)


def test_close_finishes_what_it_can_and_aborts_the_rest(llm: LLM) -> None:
    engine = AsyncEngine(llm)

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(engine.generate(PROMPTS[0], params)) for params in (greedy(8), ENDLESS)]
        await until(lambda: len(llm.engine.scheduler.running) == 2)
        started = time.perf_counter()
        await engine.close(timeout=0.3)
        assert time.perf_counter() - started < 2
        with pytest.raises(CodemillError, match="closed"):
            await engine.generate("x")
        return [(await task).outputs[0].finish_reason for task in tasks]

    assert asyncio.run(main()) == ["length", "abort"]
    assert not engine._loop._thread.is_alive()
    assert is_idle(llm)
    assert llm.generate("x", greedy(1))[0].outputs[0].token_ids, "the LLM can be used again"


def test_functions_run_between_steps(llm: LLM, engine: AsyncEngine) -> None:
    async def main() -> None:
        assert await engine.call(lambda llm: threading.current_thread().name) == "codemill-engine"
        with pytest.raises(ZeroDivisionError):
            await engine.call(lambda llm: 1 // 0)
        assert (await engine.metrics())["requests_received"] > 0

    asyncio.run(main())


def test_new_weights_change_the_answers(tmp_path: Path) -> None:
    llm, other = (LLM(dtype="float32", kv_cache_bytes=1 << 20) for _ in range(2))
    other.model.model.embed_tokens.weight.data.mul_(-1)
    expected = other.generate("abc", greedy(8))[0].outputs[0].token_ids
    save_pretrained(other.model, tmp_path)

    async def main(engine: AsyncEngine) -> tuple[list[int], list[int]]:
        before = await engine.generate("abc", greedy(8))
        await engine.update_weights(tmp_path)
        after = await engine.generate("abc", greedy(8))
        return before.outputs[0].token_ids, after.outputs[0].token_ids

    with AsyncEngine(llm) as engine:
        before, after = asyncio.run(main(engine))
    assert before != expected
    assert after == expected


def test_event_loops_in_several_threads_share_the_engine(llm: LLM, engine: AsyncEngine) -> None:
    expected = {each: llm.generate(each, greedy())[0].outputs[0].text for each in PROMPTS}
    found = {}

    def work(prompt: str) -> None:
        updates = asyncio.run(collect(engine.stream(prompt, greedy())))
        found[prompt] = "".join(update.text for update in updates)

    threads = [threading.Thread(target=work, args=(each,)) for each in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == expected


def test_a_long_prompt_does_not_hold_up_the_event_loop(engine: AsyncEngine) -> None:
    text = "def f(x): return x + 1\n" * 40_000

    async def main() -> float:
        async def ask() -> None:
            with pytest.raises(UsageError, match="shorten the prompt"):
                await anext(engine.stream(text))

        asking, longest, before = asyncio.create_task(ask()), 0.0, time.perf_counter()
        while not asking.done():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, before = max(longest, now - before), now
        await asking
        return longest

    started = time.perf_counter()
    longest = asyncio.run(main())
    assert longest < (time.perf_counter() - started) / 2


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ("", None, "empty"),
        ([1, 10**9], None, "vocabulary"),
        (7.5, None, "give a text or a list"),
        ("x", SamplingParams(best_of=2), "best_of"),
        ("x", SamplingParams(stop_token_ids=[10**9]), "stop_token_ids"),
    ],
)
def test_wrong_requests_are_refused_before_the_first_update(
    engine: AsyncEngine, prompt: Any, params: SamplingParams | None, message: str
) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match=message):
            await anext(engine.stream(prompt, params))
        assert engine.num_waiting == 0

    asyncio.run(main())
