"""The suites by name. Each is imported when it is asked for: listing names must stay quick."""

import difflib
import re
from dataclasses import replace
from importlib import import_module

from codemill.errors import UsageError
from codemill.eval.suite import Suite, SuiteOptions

# name -> module of this package and class
_SUITES = {
    "humaneval": ("humaneval", "HumanEval"),
    "humaneval+": ("humaneval", "HumanEvalPlus"),
    "mbpp": ("mbpp", "Mbpp"),
    "mbpp+": ("mbpp", "MbppPlus"),
    "humaneval-infilling": ("infilling", "Infilling"),
    "humanevalpack": ("humanevalpack", "HumanEvalPack"),
    "multipl-e": ("multipl_e", "MultiPlE"),
    "cruxeval": ("cruxeval", "CruxEval"),
    "livecodebench": ("livecodebench", "LiveCodeBench"),
    "bfcl": ("bfcl", "Bfcl"),
    "text-to-sql": ("text_to_sql", "TextToSql"),
    "repository": ("repository", "RepositoryCompletion"),
    "tasks": ("synthetic_tasks", "SyntheticTasks"),
}
# How else people write them, after `_plain` -> name, and the variant that the spelling asks for.
_ALIASES: dict[str, tuple[str, str | None]] = {
    "he": ("humaneval", None),
    "evalplus": ("humaneval+", None),
    "infilling": ("humaneval-infilling", None),
    "infill": ("humaneval-infilling", None),
    "fim": ("humaneval-infilling", None),
    "humanevalfim": ("humaneval-infilling", None),
    "mbppsanitized": ("mbpp", "sanitized"),
    "sanitizedmbpp": ("mbpp", "sanitized"),
    "mbppfull": ("mbpp", "full"),
    "crux": ("cruxeval", None),
    "lcb": ("livecodebench", None),
    "bfclv3": ("bfcl", None),
    "bfclv4": ("bfcl", None),
    "functioncalling": ("bfcl", None),
    "sql": ("text-to-sql", None),
    "text2sql": ("text-to-sql", None),
    "sqleval": ("text-to-sql", None),
    "repo": ("repository", None),
    "repositorycompletion": ("repository", None),
    "repocompletion": ("repository", None),
    "synthetic": ("tasks", None),
    "synthetictasks": ("tasks", None),
}


def suite_names() -> tuple[str, ...]:
    """The names of all suites, in the order in which they are listed."""
    return tuple(_SUITES)


def suite_class(name: str) -> type[Suite]:
    """The class of a suite, by its exact name."""
    module, class_name = _SUITES[name]
    found: type[Suite] = getattr(import_module(f"codemill.eval.{module}"), class_name)
    return found


def get_suite(name: str, options: SuiteOptions = SuiteOptions()) -> Suite:  # noqa: B008
    """The suite that `name` means: case, spaces, `-` and `_` do not matter, `plus` is `+`, and usual aliases are known.

    Raises UsageError for a name that means none, and for a variant or language that the suite does not have.
    """
    exact, variant = _find(name)
    if variant is not None and options.variant is None:
        options = replace(options, variant=variant)
    return suite_class(exact)(options)


def _find(name: str) -> tuple[str, str | None]:
    plain = _plain(name)
    known: dict[str, tuple[str, str | None]] = {_plain(exact): (exact, None) for exact in _SUITES} | _ALIASES
    if plain in known:
        return known[plain]
    near = difflib.get_close_matches(plain, known, n=1)
    hint = f"; did you mean {known[near[0]][0]}?" if near else ""
    raise UsageError(f"there is no suite {name!r}: the suites are {', '.join(_SUITES)}{hint}")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower()).replace("plus", "+")
