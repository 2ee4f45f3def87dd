"""What is found in training texts and what is not: planted copies of problems, and programs that only look alike."""

import gzip
import itertools
import json
import re
import time
from pathlib import Path

import pytest

from codemill.data.contamination import BenchmarkProblem, ContaminationIndex, Match, Sensitivity
from codemill.data.corpus import stdlib_modules
from codemill.data.synthesis import generate_tasks
from codemill.errors import UsageError

PROMPT = '''from typing import List


def merge_intervals(spans: List[tuple], gap: int = 0) -> List[tuple]:
    """Merge the overlapping spans of a list and return them in ascending order.
    Spans whose distance is at most gap count as overlapping too.
    >>> merge_intervals([(1, 3), (2, 6), (8, 10)])
    [(1, 6), (8, 10)]
    """
'''
SOLUTION = """    merged = []
    for start, end in sorted(spans):
        if merged and start - merged[-1][1] <= gap:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
"""
TEST = """def check(candidate):
    assert candidate([(5, 9), (17, 23), (8, 12)], 2) == [(5, 12), (17, 23)]
    assert candidate([]) == []
"""
OTHER = BenchmarkProblem(
    "toy",
    "Toy/2",
    {
        "text": "Write a function that counts how many vowels a sentence has, treating y as a consonant.",
        "code": "def count_vowels(s):\n    return sum(c in 'aeiou' for c in s)\n",
    },
)
PROBLEM = BenchmarkProblem(
    "toy", "Toy/1", {"prompt": PROMPT, "canonical_solution": SOLUTION, "test": TEST, "program": PROMPT + SOLUTION}
)
SURROUNDINGS = "import os\n\n\ndef size_of(path):\n    return os.stat(path).st_size\n"


@pytest.fixture(scope="module")
def index() -> ContaminationIndex:
    return ContaminationIndex([PROBLEM, OTHER])


def renamed(program: str) -> str:
    names = ("merge_intervals", "spans", "gap", "merged", "start", "end")
    for number, name in enumerate(names):
        program = re.sub(rf"\b{name}\b", f"name_{number}", program)
    return program


def without_docstring(program: str) -> str:
    return re.sub(r'    """[\s\S]*?"""\n', "", program)


def commented(program: str) -> str:
    """A remark after each line: no ten words in a row are left."""
    lines = program.splitlines()
    return "\n".join(f"{line}  # remark number {number}" if line.strip() else line for number, line in enumerate(lines))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (PROMPT + SOLUTION, "n-gram"),
        (SURROUNDINGS + "\n\n" + PROMPT + SOLUTION + "\n\n" + SURROUNDINGS, "n-gram"),
        (json.dumps({"text": PROMPT}), "n-gram"),
        (PROMPT.upper().replace(" ", "  "), "n-gram"),
        (SOLUTION, "n-gram"),
        (TEST.replace("candidate", "merge_intervals"), "near-duplicate"),
        (renamed(without_docstring(PROMPT + SOLUTION)), "near-duplicate"),
        (commented(without_docstring(PROMPT + SOLUTION)), "n-gram"),  # of one long line
        (commented(renamed(without_docstring(PROMPT + SOLUTION))), "near-duplicate"),
        (
            f"Here you are:\n```python\n{renamed(without_docstring(PROMPT + SOLUTION))}```\nThat is all.",
            "near-duplicate",
        ),
        (
            SURROUNDINGS * 20 + "\n\n" + renamed(without_docstring(PROMPT + SOLUTION)) + "\n\n" + SURROUNDINGS,
            "near-duplicate",
        ),
        (SURROUNDINGS, None),
        ("", None),
        ("\0\ud800 \u202e", None),
    ],
)
def test_copies_are_found_however_they_are_dressed(index: ContaminationIndex, text: str, kind: str | None) -> None:
    match = index.find(text)
    assert (match.kind if match else None) == kind
    if match:
        assert (match.suite, match.task_id) == ("toy", "Toy/1")


def test_a_match_says_what_was_found(index: ContaminationIndex) -> None:
    by_words = index.find(SURROUNDINGS + PROMPT)
    assert by_words == Match(
        "toy", "Toy/1", "program", "n-gram", "from typing import list def merge_intervals spans list tuple gap"
    )
    near = index.find(SURROUNDINGS + "\n\n" + renamed(without_docstring(PROMPT + SOLUTION)))
    assert near is not None
    assert near.similarity is not None
    assert 0.7 <= near.similarity <= 1.0
    assert near.evidence.startswith("def name_0(name_1: List[tuple]")


def test_prose_with_a_word_changed_in_every_sentence_is_found() -> None:
    animals = "cat dog owl hen cow pig rat bee ant fox elk yak".split()
    story = "\n".join(f"Today the {animal} of the old mill by river {n} told us" for n, animal in enumerate(animals))
    changed = re.sub(r"told", "asked", story)
    problem = BenchmarkProblem("toy", "Toy/3", {"text": story})
    match = ContaminationIndex([problem], Sensitivity(ngram=12, similarity=0.5)).find(changed)
    assert match is not None
    assert match.kind == "near-duplicate"
    assert ContaminationIndex([problem], Sensitivity(ngram=12, similarity=0.9)).find(changed) is None


def test_a_text_shorter_than_a_run_must_occur_whole() -> None:
    index = ContaminationIndex(
        [BenchmarkProblem("toy", "Toy/4", {"text": "Find the smallest palindrome above a number."})]
    )
    assert index.find("Task: find the smallest palindrome above a number!") is not None
    assert index.find("Find the smallest palindrome above two numbers.") is None
    tiny = ContaminationIndex([BenchmarkProblem("toy", "Toy/5", {"text": "Reverse the given string"})])
    assert tiny.find("Reverse the given string") is None


def test_boilerplate_of_many_problems_flags_nothing() -> None:
    frame = "Write a short Python function for the following task and test it well. "
    many = [BenchmarkProblem("toy", f"Toy/{n}", {"text": f"{frame}It is number {n}."}) for n in range(4)]
    assert ContaminationIndex(many).find(frame) is None
    assert ContaminationIndex(many[:3]).find(frame) is not None
    one_in_many_forms = [
        BenchmarkProblem("toy", f"{form}/7/L{n}", {"text": f"{frame}Form {n}."}) for n, form in enumerate("abcdefgh")
    ]
    assert ContaminationIndex(one_in_many_forms).find(frame) is not None


def test_a_frame_around_every_problem_flags_nothing() -> None:
    frame = "using System;\nusing System.Linq;\nclass Program {{\n  static int {}(int a) {{ return Run(a, 2); }}\n}}\n"
    names = ["Alpha", "Beta", "Gamma", "Delta", "Epsilon"]
    many = [BenchmarkProblem("toy", f"Toy/{n}", {"prompt": frame.format(name)}) for n, name in enumerate(names)]
    other = "using System;\n" + frame.format("Zeta")
    assert ContaminationIndex(many).find(other) is None
    assert ContaminationIndex(many[:3]).find(other) is not None
    same = [BenchmarkProblem("toy", f"Toy/{n}", {"setup": frame.format("Alpha")}) for n in range(5)]
    assert ContaminationIndex(same).find(frame.format("Alpha")) is None


@pytest.mark.parametrize(
    "text",
    [
        "1 2 3 4 5 6 7 8 9 10 11 12",
        "a b c d e f g h i j k l m",
        "for i in range(n):\n    for j in range(i, n):\n        for k in range(j, n):",
        "0 0 0 0 0 0 0 0 0 0 palindrome",
    ],
)
def test_runs_that_every_program_has_flag_nothing(text: str) -> None:
    problem = BenchmarkProblem("toy", "Toy/1", {"code": text, "prompt": PROMPT})
    assert ContaminationIndex([problem]).find(f"{text}\n{SURROUNDINGS}") is None


def test_the_length_of_runs_and_the_similarity_can_be_chosen() -> None:
    eight = "merge the overlapping spans of a list and"
    assert ContaminationIndex([PROBLEM]).find(eight) is None
    assert ContaminationIndex([PROBLEM], Sensitivity(ngram=8)).find(eight) is not None
    program = renamed(without_docstring(PROMPT + SOLUTION)).replace(
        "name_3.append((name_4, name_5))", "yield name_4, 0"
    )
    assert ContaminationIndex([PROBLEM], Sensitivity(similarity=0.6)).find(program) is not None
    assert ContaminationIndex([PROBLEM], Sensitivity(similarity=1.0)).find(program) is None


@pytest.mark.parametrize("bad", [{"ngram": 1}, {"most_problems": 0}, {"similarity": 0.1}, {"similarity": 1.1}])
def test_a_sensitivity_that_means_nothing_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sensitivity(**bad)  # type: ignore[arg-type]


def test_nothing_is_found_in_nothing() -> None:
    assert ContaminationIndex([]).find(PROMPT) is None
    assert ContaminationIndex([BenchmarkProblem("toy", "Toy/1", {})]).find(PROMPT) is None


def test_a_huge_text_is_searched_to_its_end(index: ContaminationIndex) -> None:
    filler = "\n".join(f"value_{n % 977} = call_{n % 31}({n % 13})" for n in range(100_000))
    start = time.monotonic()
    assert index.find(filler) is None
    for text in (f"{filler}\n\n{PROMPT}", f"{filler[:995_000]}\n\n{PROMPT}\n\n{filler}"):
        match = index.find(text)
        assert match is not None
        assert match.task_id == "Toy/1"
    assert time.monotonic() - start < 120


def public_problems(data: Path) -> list[BenchmarkProblem]:
    with gzip.open(data / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        human = [json.loads(line) for line in file]
    mbpp = [json.loads(line) for line in (data / "mbpp" / "mbpp.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        *(
            BenchmarkProblem(
                "humaneval", p["task_id"], {"program": p["prompt"] + p["canonical_solution"], "test": p["test"]}
            )
            for p in human
        ),
        *(
            BenchmarkProblem(
                "mbpp", str(p["task_id"]), {"text": p["text"], "code": p["code"], "tests": "\n".join(p["test_list"])}
            )
            for p in mbpp
        ),
    ]


def test_public_problems_are_found_and_the_standard_library_is_not(shared_data: Path) -> None:
    problems = public_problems(shared_data)
    index = ContaminationIndex(problems)
    human = [problem for problem in problems if problem.suite == "humaneval"]
    missed = [p.task_id for p in human if index.find(f"{SURROUNDINGS}\n\n{p.parts['program']}\n") is None]
    assert missed == []
    mbpp = [problem for problem in problems if problem.suite == "mbpp"]
    found = sum(index.find(f"{p.parts['text']}\n\n{p.parts['code']}") is not None for p in mbpp)
    assert found == len(mbpp)
    modules = stdlib_modules()[::4]
    flagged = [module.path for module in modules if index.find(module.text)]
    assert len(flagged) <= 0.01 * len(modules)


def test_synthetic_tasks_are_rarely_flagged(shared_data: Path) -> None:
    index = ContaminationIndex(public_problems(shared_data))
    tasks = list(itertools.islice(generate_tasks(0), 500))
    flagged = [task for task in tasks if index.find(f"{task.instruction}\n\n{task.prompt}{task.solution}")]
    assert len(flagged) <= 5
