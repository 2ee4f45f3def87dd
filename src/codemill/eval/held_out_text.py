"""Text that the embedded model has not seen in training: whole modules of the standard library, and small tasks.

The modules are those of the Python that runs this; another version has slightly other text.
"""

import itertools

from codemill.data.corpus import split_modules, stdlib_modules
from codemill.data.synthesis import generate_tasks

HELD_OUT_FRACTION = 0.05  # as in the training of the embedded model (runs/embedded.toml keeps the default)
NUM_TASKS = 600
TASKS_PER_FILE = 12
_SEED = 7


def held_out_modules() -> list[str]:
    """The sources of the held-out modules, about 94,000 tokens of the embedded model."""
    return [module.text for module in split_modules(stdlib_modules(), HELD_OUT_FRACTION)[1]]


def training_modules() -> list[str]:
    """The sources of the modules that the embedded model was trained on, to calibrate it with."""
    return [module.text for module in split_modules(stdlib_modules(), HELD_OUT_FRACTION)[0]]


def task_files(num_tasks: int = NUM_TASKS, held_out: bool = True) -> list[str]:
    """Functions of combinations of operations that training has not seen (or has), several to a file.

    By default about 42,000 tokens of the embedded model.
    """
    tasks = itertools.islice(generate_tasks(_SEED, held_out=held_out), num_tasks)
    functions = [task.prompt + task.solution for task in tasks]
    files = [functions[start : start + TASKS_PER_FILE] for start in range(0, num_tasks, TASKS_PER_FILE)]
    return ["\n\n\n".join(each) + "\n" for each in files]
