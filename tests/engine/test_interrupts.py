"""Ctrl-C and want of memory at any line of the engine: nothing is lost, nothing leaks, and every output is right."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import codemill.engine
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
    """Raises at the n-th line that is executed in some files, and again so many lines later if it is asked to."""

    def __init__(self, files: set[str], countdowns: list[int], error: type[BaseException]) -> None:
        self._files = files
        self._countdowns = countdowns
        self._error = error
        self.hit: list[tuple[str, int]] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        if event == "line" and self._countdowns:
            self._countdowns[0] -= 1
            if self._countdowns[0] <= 0:
                self._countdowns.pop(0)
                self.hit.append((frame.f_code.co_name, frame.f_lineno))
                raise self._error
        return self


@contextmanager
def interrupted(files: set[str], countdowns: list[int], error: type[BaseException]) -> Iterator[Interrupter]:
    interrupter = Interrupter(files, countdowns, error)
    before = sys.gettrace()
    sys.settrace(interrupter)
    try:
        yield interrupter
    except error:
        assert interrupter.hit
    finally:
        sys.settrace(before)


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
                is_twice = len(countdowns) == 2
                with interrupted(BOOKKEEPING, countdowns, rng.choice([KeyboardInterrupt, MemoryError])) as interrupter:
                    harness.engine.step()
                lines.update(interrupter.hit)
                if not is_twice:
                    harness.check_accounts()
                harness.step()
            if rng.random() < 0.3:
                with interrupted(BOOKKEEPING, [rng.randint(1, 50)], KeyboardInterrupt):
                    harness.engine.abort(rng.choice(harness.requests))
        harness.finish()
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
