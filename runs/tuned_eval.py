"""pass@1 of a model on held-out tasks: greedy and sampled, completing functions or answering in chat.

    python runs/tuned_eval.py runs/out/tuned/sft-0/model --style chat --output runs/out/tuned/sft-0/eval.json

The tasks are the first of the `tasks` suite of `codemill eval`, which no training row contains.
"""

import argparse
import itertools
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedded_report import judge

from codemill import LLM, SamplingParams
from codemill.data.synthesis import SyntheticTask, generate_tasks
from codemill.eval.suite import Style
from codemill.eval.synthetic_tasks import SEED

MAX_TOKENS = 200
TEMPERATURE = 0.8


def answers(llm: LLM, tasks: Sequence[SyntheticTask], style: Style, params: SamplingParams) -> list[str]:
    if style == "chat":
        outputs = llm.chat([[{"role": "user", "content": task.instruction}] for task in tasks], params)
    else:
        outputs = llm.generate([task.prompt for task in tasks], params)
    return [output.outputs[0].text for output in outputs]


def measure(llm: LLM, tasks: Sequence[SyntheticTask], style: Style, params: SamplingParams) -> dict[str, Any]:
    start = time.perf_counter()
    verdicts = judge(tasks, answers(llm, tasks, style, params), style)
    counts = Counter(verdicts)
    seconds = round(time.perf_counter() - start, 1)
    return {"n": len(tasks), "pass@1": counts["ok"] / len(tasks), "verdicts": dict(counts), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model spec")
    parser.add_argument("--style", choices=("base", "chat"), default="chat")
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument(
        "--samplings", type=int, default=1, help=f"rounds at temperature {TEMPERATURE}, each its own seed"
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    llm = LLM(arguments.model)
    tasks = list(itertools.islice(generate_tasks(SEED, held_out=True), arguments.tasks))
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    result = {"style": arguments.style, "greedy": measure(llm, tasks, arguments.style, greedy), "sampled": []}
    for seed in range(arguments.samplings):
        params = SamplingParams(temperature=TEMPERATURE, max_tokens=MAX_TOKENS, seed=seed)
        result["sampled"].append(measure(llm, tasks, arguments.style, params))
    print(json.dumps(result))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
