"""Ctrl-C and want of memory at any line of the engine: nothing is lost, nothing leaks, and every output is right."""

import functools
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import codemill.engine
from codemill import SamplingParams
from codemill.engine.async_engine import AsyncEngine
from codemill.engine.request import Request
from engine.harness import GRAMMARS, Harness, random_prompt
from engine.test_engine import plain, random_harness
from models.reference import FAMILIES

ENGINE = Path(codemill.engine.__file__).parent
BOOKKEEPING = {
    str(ENGINE / f"{name}.py")
    for name in (
        "engine",
        "engine_counts",
        "scheduler",
        "cache_manager",
        "block_manager",
        "state_pool",
        "prefix_hash",
        "fair_share",
    )
} | {str(ENGINE / "speculative.py")}


class Interrupter:
    """Acts at the n-th line that is executed in some files, and again so many lines later if it is asked to."""

    def __init__(self, files: set[str], countdowns: list[int], act: Callable[[], object]) -> None:
        self._files = files
        self._countdowns = countdowns
        self._act = act
        self.hit: list[tuple[str, int]] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        if event == "line" and self._countdowns:
            self._countdowns[0] -= 1
            if self._countdowns[0] <= 0:
                self._countdowns.pop(0)
                self.hit.append((frame.f_code.co_name, frame.f_lineno))
                self._act()
        return self


@contextmanager
def acting(files: set[str], countdowns: list[int], act: Callable[[], object]) -> Iterator[Interrupter]:
    interrupter = Interrupter(files, countdowns, act)
    before = sys.gettrace()
    sys.settrace(interrupter)
    try:
        yield interrupter
    finally:
        sys.settrace(before)


@contextmanager
def interrupted(files: set[str], countdowns: list[int], error: type[BaseException]) -> Iterator[Interrupter]:
    def fail() -> None:
        raise error

    with acting(files, countdowns, fail) as interrupter:
        try:
            yield interrupter
        except error:
            assert interrupter.hit


def in_a_thread(test: Callable[..., None]) -> Callable[..., None]:
    """A test in a thread of its own: a trace function that raises at the `return` of an `except` leaves the handled
    exception on its thread's stack for good (CPython 3.11), where it would be the context of what later tests raise.
    """

    @functools.wraps(test)
    def run(*arguments: Any, **keywords: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(test, *arguments, **keywords).result()

    return run


def add_random(harness: Harness, rng: random.Random, earlier: list[tuple[int, ...]]) -> Request:
    prompt = random_prompt(rng, harness.plain.model.config.vocab_size, earlier)
    earlier.append(prompt)
    return harness.add(
        prompt,
        rng.randint(1, 30),
        priority=rng.choice([0, 0, 1, -1]),
        n=rng.choice([1, 1, 2]),
        structured_output=rng.choice(GRAMMARS),
    )


def finish(harness: Harness) -> int:
    """Run until nothing is left, and compare all but the requests that failed -> how many did."""
    while not harness.engine.is_idle:
        harness.step()
    failed = [request for request in harness.requests if any(each.error for each in request.sequences)]
    errors = [each.error for request in failed for each in request.sequences if each.error is not None]
    assert all(str(error) == "the request was interrupted within a token: send it again" for error in errors)
    harness.requests = [request for request in harness.requests if request not in failed]
    harness.finish()
    return len(errors)


@pytest.mark.parametrize("family", FAMILIES)
@in_a_thread
def test_an_interrupt_at_any_line_loses_nothing(family):
    """Up to two in one call: the second may fall into the putting in order."""
    rng = random.Random(f"interrupts of {family}")
    lines = set()
    for seed in range(4):
        harness, earlier = random_harness(rng, family, seed % 2), []
        for _ in range(12):
            add_random(harness, rng, earlier)
            for _ in range(rng.choice([1, 3, 8])):
                countdowns = [rng.randint(1, rng.choice([60, 600])) for _ in range(rng.choice([1, 1, 2]))]
                with interrupted(BOOKKEEPING, countdowns, rng.choice([KeyboardInterrupt, MemoryError])) as interrupter:
                    harness.engine.step()
                lines.update(interrupter.hit)
                if (
                    harness.engine._at_risk == "nothing"
                ):  # else the putting in order was interrupted: the next call does it
                    harness.check_accounts()
                harness.step()
            if rng.random() < 0.3:
                with interrupted(BOOKKEEPING, [rng.randint(1, 50)], KeyboardInterrupt):
                    harness.engine.abort(rng.choice(harness.requests))
        finish(harness)
    assert len(lines) > 70, "the interrupts hit few places"


def test_an_interrupt_within_a_pass_keeps_the_prefix_cache():
    """Who stops an answer by Ctrl-C goes on in the same conversation."""
    harness = Harness(plain("qwen3"), {"block_size": 4})
    prompt = tuple(range(40))
    request = harness.add(prompt, 20)
    for _ in range(5):
        harness.step()
    harness.fail_one_pass()
    harness.engine.abort(request)
    again = harness.add(prompt, 3)
    harness.finish()
    assert again.sequences[0].num_reused >= 36


@in_a_thread
def test_an_interrupt_within_a_token_fails_that_request_alone():
    """At every line of three tokens that are taken: the token counts, or its request fails, and no other."""
    num_failed, num_lines = [], 0
    while True:
        harness = Harness(plain("qwen3"), {})
        for number in range(3):
            harness.add((1, 2, 3, number), 5)
        with interrupted({str(ENGINE / "sequence.py")}, [num_lines + 1], KeyboardInterrupt) as interrupter:
            harness.engine.step()
        num_failed.append(finish(harness))
        if not interrupter.hit:
            break
        num_lines += 1
    assert num_lines > 50
    assert set(num_failed) == {0, 1}


# Streams that are forgotten, and closed by the garbage collector wherever it comes to run

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


def test_a_stream_that_is_forgotten_at_any_line_of_a_step_disturbs_nobody(dense_llm):
    """`holder.clear()` is what the garbage collector does."""
    expected = [each.outputs for each in dense_llm.generate(["a", "b"], GREEDY)]
    rng, lines = random.Random(0), set()
    for _ in range(150):
        holder = [dense_llm.stream("c", SamplingParams(max_tokens=50))]
        next(holder[0])
        with acting(BOOKKEEPING, [rng.randint(1, rng.choice([60, 800]))], holder.clear) as interrupter:
            found = dense_llm.generate(["a", "b"], GREEDY)
        assert [each.outputs for each in found] == expected
        lines.update(interrupter.hit)
        holder.clear()
        assert dense_llm.engine.is_idle
        assert dense_llm.engine.cache.is_unused
    assert len(lines) > 70


def test_a_stream_that_is_forgotten_in_another_threads_step_does_not_wait(dense_llm):
    stream = dense_llm.stream("c", SamplingParams(max_tokens=50))
    next(stream)
    is_held, may_go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with dense_llm.lock:
            is_held.set()
            may_go_on.wait(10)
            dense_llm.engine.step()

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    start = time.perf_counter()
    stream.close()
    assert time.perf_counter() - start < 5
    may_go_on.set()
    holder.join()
    assert dense_llm.engine.is_idle
    assert dense_llm.engine.cache.is_unused


def test_a_request_that_is_forgotten_while_another_is_posted_does_not_lock_the_loop(dense_llm):
    with AsyncEngine(dense_llm) as engine:
        done = []

        def post() -> None:
            with engine._loop._accepting:
                engine._loop.abort("nobody")
                done.append(True)

        thread = threading.Thread(target=post, daemon=True)
        thread.start()
        thread.join(5)
        assert done
