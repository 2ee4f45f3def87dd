"""Benchmarks during training. They are wired here: training and evaluation know nothing of each other."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from codemill.chat.tokenizer import Tokenizer
    from codemill.engine.llm import LLM
    from codemill.eval.evaluation import Tally
    from codemill.eval.suite import Style
    from codemill.train.fine_tuning import Benchmark
    from codemill.train.policy import Policy
    from codemill.train.sft_config import EvaluationSection

_ADAPTER = "trained"


class Silent:
    """Hears how an evaluation goes and says nothing."""

    def stage(self, name: str, tally: "Tally") -> None:
        pass

    def advance(self, tally: "Tally") -> None:
        pass

    def note(self, text: str) -> None:
        pass


def checked_benchmark(section: "EvaluationSection | None") -> "Benchmark":
    """`benchmark`, once the suites of the configuration and their data are known to be there. Raises UsageError."""
    if section is not None:
        from codemill.eval.dataset import load_dataset
        from codemill.eval.registry import get_suite

        for suite in section.suites:
            load_dataset(get_suite(suite), Path(section.data) if section.data else None)
    return benchmark


def benchmark(section: "EvaluationSection", policy: "Policy", tokenizer: "Tokenizer") -> Mapping[str, float]:
    """pass@1, 0 to 1, of the policy as it stands, by suite. Raises UsageError for a suite that there is not."""
    from codemill.engine.llm import LLM

    with TemporaryDirectory() as directory:
        # A new engine each time: nothing that it remembers was computed with other weights.
        llm = LLM.from_parts(policy.model, tokenizer)
        adapter = None
        if policy.adapter is not None:
            policy.adapter.save(Path(directory) / _ADAPTER, "")
            llm.add_adapter(_ADAPTER, Path(directory) / _ADAPTER)
            adapter = _ADAPTER
        return {f"{suite} pass@1": _score(suite, section, llm, adapter) for suite in section.suites}


def _score(suite: str, section: "EvaluationSection", llm: "LLM", adapter: str | None) -> float:
    from codemill.eval.plan import plan
    from codemill.eval.request import Drawing, EvalRequest, LoadedModel
    from codemill.eval.runner import evaluate
    from codemill.sandbox.pool import num_cores

    request = EvalRequest(
        suite=suite,
        answers=LoadedModel(llm, "the policy", adapter),
        data=Path(section.data) if section.data else None,
        limit=section.limit,
        drawing=Drawing(style=cast("Style | None", section.style or None)),
        gold_check=False,
        workers=num_cores(),
    )
    outcome = evaluate(plan(request).evaluation, Silent())
    return outcome.results.scores.pass_at[1].value
