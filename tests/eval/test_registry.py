"""Suites by name, however it is spelt."""

import subprocess
import sys

import pytest

from codemill.errors import UsageError
from codemill.eval.registry import get_suite, suite_class, suite_names
from codemill.eval.suite import Suite, SuiteOptions


@pytest.mark.parametrize("name", suite_names())
def test_each_name_is_that_of_its_class(name: str) -> None:
    found = suite_class(name)
    assert issubclass(found, Suite)
    assert found.name == name
    assert found.styles
    assert isinstance(get_suite(name), found)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("HumanEval", "humaneval"),
        ("human-eval", "humaneval"),
        ("HUMAN_EVAL", "humaneval"),
        ("HumanEval Plus", "humaneval+"),
        ("humanevalplus", "humaneval+"),
        ("mbpp-plus", "mbpp+"),
        ("MultiPL-E", "multipl-e"),
        ("multiple", "multipl-e"),
        ("infilling", "humaneval-infilling"),
        ("HumanEvalPack", "humanevalpack"),
        ("SQL", "text-to-sql"),
        ("text_to_sql", "text-to-sql"),
        ("repo", "repository"),
        ("CRUXEval", "cruxeval"),
        ("lcb", "livecodebench"),
        ("BFCL_v4", "bfcl"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    assert get_suite(spelling).name == name


def test_a_spelling_may_choose_the_variant_but_an_option_wins() -> None:
    assert get_suite("mbpp-sanitized").options.variant == "sanitized"
    assert get_suite("sanitized mbpp", SuiteOptions(variant="full")).options.variant == "full"


@pytest.mark.parametrize("name", ["", "humanevil", "swe-bench", "+", "humaneval++"])
def test_an_unknown_name_lists_the_suites(name: str) -> None:
    with pytest.raises(UsageError, match="humaneval, humaneval\\+, mbpp") as caught:
        get_suite(name)
    assert repr(name) in str(caught.value)


def test_a_near_miss_gets_a_hint() -> None:
    with pytest.raises(UsageError, match=r"did you mean humaneval\?"):
        get_suite("humanevel")


def test_names_cost_no_imports() -> None:
    code = "import sys; from codemill.eval.registry import suite_names; suite_names(); print(*sys.modules, sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "codemill.eval.registry" in loaded
    assert not {"torch", "numpy", "codemill.eval.humaneval", "codemill.eval.mbpp"} & set(loaded)
