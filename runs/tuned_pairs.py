"""Preference pairs by running code: a model answers training tasks several times, and the sandbox says which pass.

    python runs/tuned_pairs.py runs/out/tuned/sft-0/model --seed 0 --output runs/out/tuned/pairs-0.jsonl

One `{"prompt", "chosen", "rejected"}` a line, each a list of messages. The tasks are not those of `tuned_data.py`, and
no held-out ones. Answers that ran out of time or memory say little on a busy machine and are left out.
"""

import argparse
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from embedded_report import judge

from codemill import LLM, SamplingParams
from codemill.data.preferences import Attempt, PreferencePair, preference_pairs, write_records
from codemill.data.synthesis import SyntheticTask, generate_tasks
from codemill.data.synthesis.conversation import request

SEED = 3_000
MAX_TOKENS = 200


def attempts_of(
    llm: LLM, tasks: Sequence[SyntheticTask], requests: Sequence[str], samples: int, temperature: float, seed: int
) -> list[list[Attempt]]:
    """The judged answers to each task."""
    params = [
        SamplingParams(temperature=temperature, max_tokens=MAX_TOKENS, n=samples, seed=seed + number)
        for number in range(len(tasks))
    ]
    outputs = llm.chat([[{"role": "user", "content": text}] for text in requests], params)
    texts = [completion.text for output in outputs for completion in output.outputs]
    verdicts = judge([task for task in tasks for _ in range(samples)], texts, "chat")
    judged = [
        Attempt(text, verdict == "ok") if verdict in ("ok", "failed") else None
        for text, verdict in zip(texts, verdicts, strict=True)
    ]
    grouped = (judged[start : start + samples] for start in range(0, len(judged), samples))
    return [[attempt for attempt in group if attempt] for group in grouped]


def make_pairs(llm: LLM, arguments: argparse.Namespace) -> Iterator[PreferencePair]:
    tasks = list(itertools.islice(generate_tasks(SEED + arguments.seed), arguments.tasks))
    rng = random.Random(arguments.seed)
    requests = [request(task, rng) for task in tasks]
    seed = arguments.seed * 1_000_000
    judged = attempts_of(llm, tasks, requests, arguments.samples, arguments.temperature, seed)
    passed = sum(attempt.passed for attempts in judged for attempt in attempts)
    print(f"{passed:,} of {sum(map(len, judged)):,} answers pass")
    for text, attempts in zip(requests, judged, strict=True):
        yield from preference_pairs([{"role": "user", "content": text}], attempts, arguments.most)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the model that answers")
    parser.add_argument("--tasks", type=int, default=600)
    parser.add_argument("--samples", type=int, default=8, help="answers to each task")
    parser.add_argument("--most", type=int, default=2, help="most pairs of a task")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    pairs = make_pairs(LLM(arguments.model), arguments)
    print(f"{arguments.output}: {write_records(arguments.output, (pair.record() for pair in pairs)):,} pairs")


if __name__ == "__main__":
    main()
