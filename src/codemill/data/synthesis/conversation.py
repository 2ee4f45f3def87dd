"""Synthetic tasks as conversations: a request in one of several phrasings, and an answer with a block of code."""

from random import Random

from codemill.data.synthesis.task import SyntheticTask

Message = dict[str, str]

_REQUESTS = (
    "{request}",
    "Please help me with this. {request}",
    "{request} Answer with a code block.",
    "I need some Python. {request}",
    "{request} Give me only the code.",
)
_COMPLETIONS = (
    "Complete this function:\n\n{block}",
    "Write the body of this function.\n\n{block}",
    "Here is the start of a Python function. Write all of it.\n\n{block}",
)
_PLAIN_SHARE, _COMPLETION_SHARE = 0.5, 0.2


def conversation(task: SyntheticTask, random: Random) -> list[Message]:
    """A user's request for the function of the task, and the assistant's answer."""
    return [{"role": "user", "content": request(task, random)}, {"role": "assistant", "content": answer(task)}]


def request(task: SyntheticTask, random: Random) -> str:
    """The task's instruction as it is, with words around it, or the start of the function to be completed."""
    roll = random.random()
    if roll < _PLAIN_SHARE:
        return task.instruction
    if roll < _PLAIN_SHARE + _COMPLETION_SHARE:
        return random.choice(_COMPLETIONS).replace("{block}", code_block(task.prompt))
    return random.choice(_REQUESTS).replace("{request}", task.instruction)


def answer(task: SyntheticTask) -> str:
    """The whole function, without the example of its docstring: that would have to be computed before the code."""
    return code_block(without_example(task.prompt) + task.solution)


def without_example(prompt: str) -> str:
    """A task's prompt without the call and result in its docstring."""
    start, separator, _ = prompt.partition("\n\n    >>> ")
    return f'{start}"""\n' if separator else prompt


def code_block(source: str) -> str:
    """A fenced block of Markdown."""
    return f"```python\n{source.rstrip()}\n```"
