"""pass@1 of a model on held-out tasks: greedy and sampled, completing functions or answering in chat.

    python runs/tuned_eval.py runs/out/tuned/sft-0/model --style chat --output runs/out/tuned/sft-0/eval.json

The tasks are the first of the `tasks` suite of `codemill eval`, which no training row contains.
"""

import argparse
import itertools
import json
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


def answers(
    llm: LLM, tasks: Sequence[SyntheticTask], style: Style, params: SamplingParams, adapter: str | None
) -> list[str]:
    if style == "chat":
        conversations = [[{"role": "user", "content": task.instruction}] for task in tasks]
        outputs = llm.chat(conversations, params, adapter=adapter)
    else:
        outputs = llm.generate([task.prompt for task in tasks], params, adapter=adapter)
    return [output.outputs[0].text for output in outputs]


def measure(tasks: Sequence[SyntheticTask], texts: Sequence[str], style: Style) -> dict[str, Any]:
    counts = Counter(judge(tasks, texts, style))
    return {"n": len(tasks), "pass@1": counts["ok"] / len(tasks), "verdicts": dict(counts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model spec")
    parser.add_argument("--adapter", help="a directory with an adapter on the model")
    parser.add_argument("--style", choices=("base", "chat"), default="chat")
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument(
        "--samplings", type=int, default=1, help=f"rounds at temperature {TEMPERATURE}, each its own seed"
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    llm = LLM(arguments.model)
    if arguments.adapter:
        llm.add_adapter(arguments.adapter, arguments.adapter)
    tasks = list(itertools.islice(generate_tasks(SEED, held_out=True), arguments.tasks))
    style: Style = arguments.style
    settings = {"greedy": SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)}
    for seed in range(arguments.samplings):
        settings[f"sampled, seed {seed}"] = SamplingParams(temperature=TEMPERATURE, max_tokens=MAX_TOKENS, seed=seed)
    result: dict[str, Any] = {"style": style}
    for name, params in settings.items():
        result[name] = measure(tasks, answers(llm, tasks, style, params, arguments.adapter), style)
    print(json.dumps(result))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
