"""Small programming tasks composed from a grammar of operations, each executed before it is used."""

from codemill.data.synthesis.generate import OPERATIONS, generate_tasks
from codemill.data.synthesis.task import SyntheticTask, is_held_out, verify

__all__ = ["OPERATIONS", "SyntheticTask", "generate_tasks", "is_held_out", "verify"]
