"""A small file in HumanEval's format."""

import gzip
import json
from pathlib import Path

COUNT = 6


def problem(number: int) -> dict[str, str]:
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def add_{number}(x):\n    """Return x + {number}."""\n',
        "entry_point": f"add_{number}",
        "canonical_solution": f"    return x + {number}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {number + 1}\n",
    }


def write_data(path: Path) -> Path:
    """`COUNT` problems, gzipped."""
    path.write_bytes(gzip.compress("\n".join(json.dumps(problem(i)) for i in range(COUNT)).encode()))
    return path
