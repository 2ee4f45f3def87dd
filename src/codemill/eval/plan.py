"""From what a user asks to the evaluation that it amounts to: the suite, its data, and where the answers come from."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from codemill.errors import UsageError
from codemill.eval.answers import AnswerSource, GivenAnswers, ModelAnswers, SuiteAnswers
from codemill.eval.dataset import Dataset, load_dataset
from codemill.eval.endpoint import EndpointGenerator
from codemill.eval.evaluation import Evaluation
from codemill.eval.generation import Generator
from codemill.eval.registry import get_suite
from codemill.eval.request import EvalRequest, LoadedModel, LocalModel, SamplesFile, Server, SuiteSolutions
from codemill.eval.results import RunConfiguration, Source, data_sha256
from codemill.eval.samples import read_samples
from codemill.eval.suite import Style, Suite
from codemill.spec import resolve


@dataclass(frozen=True)
class Plan:
    """An evaluation, and what is wrong with the samples file that it judges: a line each."""

    evaluation: Evaluation
    problems: Sequence[str] = ()
    missing: Sequence[str] = ()  # task ids for which the file has no sample


@dataclass(frozen=True)
class _Answers:
    """Where the answers come from, and how that is recorded."""

    source: AnswerSource
    configuration: RunConfiguration
    name: str | None = None  # of the model, for the directory
    fingerprint: str | None = None
    problems: Sequence[str] = ()
    missing: Sequence[str] = ()


def plan(request: EvalRequest) -> Plan:
    """The evaluation. Loads the data, but no model. Raises UsageError for what does not go together."""
    suite = get_suite(request.suite, request.options)
    style = _style(suite, request.drawing.style)
    everything = load_dataset(suite, request.data)
    answers = _answers(request, suite, style, everything)
    evaluation = Evaluation(
        suite=suite,
        dataset=everything.first(request.limit),
        answers=answers.source,
        configuration=answers.configuration,
        style=style,
        labels=_labels(suite, answers.name) if answers.name is not None else (),
        output=request.output,
        overwrite=request.overwrite,
        ks=request.ks,
        model_fingerprint=answers.fingerprint,
        gold_check=request.gold_check,
        workers=request.workers,
        timeout=request.timeout,
        unsafe=request.unsafe,
    )
    return Plan(evaluation, answers.problems, answers.missing)


def _style(suite: Suite, wanted: Style | None) -> Style:
    if wanted is not None and wanted not in suite.styles:
        raise UsageError(f"{suite.title} has no style {wanted!r}: it has {', '.join(suite.styles)}")
    return wanted or suite.styles[0]


def _labels(suite: Suite, model: str) -> list[str]:
    parts = [suite.name, suite.options.variant, suite.options.language, model.rstrip("/").rpartition("/")[2]]
    return [part for part in parts if part]


def _answers(request: EvalRequest, suite: Suite, style: Style, everything: Dataset) -> _Answers:
    wanted = request.answers
    if isinstance(wanted, SuiteSolutions):
        return _solutions(suite, wanted, request)
    if isinstance(wanted, SamplesFile):
        return _given(wanted, everything, request)
    if isinstance(wanted, Server):
        return _served(suite, style, wanted, request)
    if isinstance(wanted, LoadedModel):
        return _loaded(suite, style, wanted, request)
    return _local(suite, style, wanted, request)


def _solutions(suite: Suite, wanted: SuiteSolutions, request: EvalRequest) -> _Answers:
    source: Source = "buggy" if wanted.wrong else "gold"
    answer = suite.wrong if wanted.wrong else suite.gold
    return _Answers(SuiteAnswers(answer), RunConfiguration(source, limit=request.limit, limits=_limits(request)))


def _given(wanted: SamplesFile, everything: Dataset, request: EvalRequest) -> _Answers:
    given = read_samples(wanted.path, {problem.task_id for problem in everything.problems})
    if not given.samples:
        reason = f"; {given.problems[0]}" if given.problems else ""
        raise UsageError(f"--samples {wanted.path} holds no sample of this suite{reason}")
    most = max(sample.index for sample in given.samples) + 1
    for k in request.ks or ():
        if k > most:
            raise UsageError(f"-k {k}: {wanted.path} has at most {most} samples a task")
    configuration = RunConfiguration(
        source="samples",
        model=wanted.path.name,
        samples_per_problem=given.per_task,
        limit=request.limit,
        limits=_limits(request),
        more={"samples_sha256": data_sha256(wanted.path), "allow_missing": wanted.allow_missing},
    )
    judged = [problem.task_id for problem in everything.problems[: request.limit]]
    answers = GivenAnswers(given, wanted.allow_missing)
    return _Answers(answers, configuration, problems=given.problems, missing=given.missing(judged))


def _served(suite: Suite, style: Style, wanted: Server, request: EvalRequest) -> _Answers:
    drawing, endpoint = request.drawing, wanted.endpoint

    def load() -> Generator:
        return EndpointGenerator(endpoint, drawing.sampling, wanted.concurrency, wanted.fim)

    more = {"fim": wanted.fim} if style == "fim" else {}
    configuration = _configuration("endpoint", endpoint.model, style, request, more, endpoint.shown)
    answers = ModelAnswers(suite, style, drawing.samples, drawing.seed, load)
    return _Answers(answers, configuration, name=endpoint.model)


def _loaded(suite: Suite, style: Style, wanted: LoadedModel, request: EvalRequest) -> _Answers:
    """Without a name for a directory: nothing says which weights the model has by now."""
    from codemill.eval.local_generation import LocalGenerator

    drawing = request.drawing

    def load() -> Generator:
        return LocalGenerator(wanted.llm, drawing.sampling, wanted.adapter)

    answers = ModelAnswers(suite, style, drawing.samples, drawing.seed, load)
    return _Answers(answers, _configuration("model", wanted.name, style, request, {}))


def _local(suite: Suite, style: Style, wanted: LocalModel, request: EvalRequest) -> _Answers:
    from codemill.eval.local_generation import check_model, load_generator

    drawing = request.drawing
    check_model(wanted)

    def load() -> Generator:
        return load_generator(wanted, drawing.sampling)

    more: dict[str, Any] = {"dtype": wanted.dtype, "device": wanted.device, "max_model_len": wanted.max_model_len}
    if wanted.quantization is not None:  # said only where it was asked for: runs of before can still be continued
        more["quantization"] = wanted.quantization
    configuration = _configuration("model", wanted.name, style, request, more)
    answers = ModelAnswers(suite, style, drawing.samples, drawing.seed, load)
    return _Answers(answers, configuration, name=wanted.name, fingerprint=weights_sha256(wanted.spec))


def _configuration(
    source: Source,
    model: str,
    style: Style,
    request: EvalRequest,
    more: Mapping[str, Any],
    endpoint: str | None = None,
) -> RunConfiguration:
    return RunConfiguration(
        source=source,
        model=model,
        endpoint=endpoint,
        style=style,
        samples_per_problem=request.drawing.samples,
        sampling=asdict(request.drawing.sampling),
        seed=request.drawing.seed,
        limit=request.limit,
        limits=_limits(request),
        more=more,
    )


def _limits(request: EvalRequest) -> Mapping[str, float | None]:
    return {"cpu_seconds": request.timeout} if request.timeout is not None else {}


def weights_sha256(spec: str | None) -> str | None:
    """The SHA-256 of a model's configuration, tokenizer and weights, fetched if need be; None for random weights."""
    source = resolve(spec)
    if source.kind == "random":
        return None
    patterns = ("config.json", "tokenizer.json", "model*.safetensors")
    if source.gguf is not None:
        paths = list(source.gguf.paths)
    else:
        directory = source.fetch((*patterns, "*.json", "*.jinja"))
        paths = sorted(path for pattern in patterns for path in directory.glob(pattern))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {data_sha256(path)}\n".encode())
    return digest.hexdigest()
