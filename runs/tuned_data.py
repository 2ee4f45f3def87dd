"""Writes what the fine-tuning of `tuned.sh` reads: conversations about training tasks, and some about held-out ones.

    python runs/tuned_data.py --count 20000 --output runs/out/tuned/conversations.jsonl
    python runs/tuned_data.py --held-out --count 200 --output runs/out/tuned/held_out.jsonl

One `{"messages": [...]}` a line. Held-out tasks are for measuring the loss alone; those that pass@1 is measured on have
another seed.
"""

import argparse
import itertools
import random
from pathlib import Path

from codemill.data.preferences import write_records
from codemill.data.synthesis import generate_tasks
from codemill.data.synthesis.conversation import conversation

SEED = 2_000  # not that of the base's tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    tasks = itertools.islice(generate_tasks(arguments.seed, held_out=arguments.held_out), arguments.count)
    rng = random.Random(arguments.seed)
    written = write_records(arguments.output, ({"messages": conversation(task, rng)} for task in tasks))
    print(f"{arguments.output}: {written:,} conversations")


if __name__ == "__main__":
    main()
