"""`codemill data pack`: training data as rows of tokens on disk."""

from pathlib import Path
from typing import Annotated, Any

import typer

from codemill.commands import data_options, options, print_json
from codemill.data.progress import bytes_progress

EXAMPLES = """
codemill data pack train.jsonl --model Qwen/Qwen3-Coder-30B-A3B-Instruct --context 32768 --output packed/
codemill data pack train.jsonl.gz more/ --context 4096 --overlong split --on-empty skip --workers 8 --output packed/
codemill data pack repositories/ --level repository --fim 0.5 --fim-chat 0.1 --context 8192 --output packed/
"""


def pack(
    inputs: data_options.Inputs,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the rows and the tokenised documents go.")],
    model: options.Model = None,
    context: data_options.Context = 4096,
    overlong: Annotated[
        str, typer.Option(help="What becomes of documents longer than the context: error, drop, truncate or split.")
    ] = "error",
    on_empty: Annotated[
        str, typer.Option(help="Whether a record with nothing to learn from is an error, or skip.")
    ] = "error",
    only_last_turn_loss: data_options.OnlyLastTurnLoss = False,
    thinking: data_options.Thinking = "auto",
    control_tokens: data_options.ControlTokens = "text",
    packing: Annotated[bool, typer.Option(help="Several documents in a row; without it, one.")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Processes that tokenise.")] = 1,
    level: data_options.Level = None,
    fim: data_options.Fim = 0.0,
    fim_chat: data_options.FimChat = 0.0,
    fim_edit: data_options.FimEdit = 0.0,
    seed: data_options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Tokenise and pack training data. What was done before, or before an interruption, is not done again."""
    from codemill.chat.tokenizer import Tokenizer
    from codemill.data.conversations import ConversationData
    from codemill.data.packed_directory import PackedDirectory
    from codemill.data.segments import find_inputs

    names = tuple(map(str, inputs))
    settings = ConversationData(
        names,
        context=context,
        overlong=overlong,
        on_empty=on_empty,
        only_last_turn_loss=only_last_turn_loss,
        thinking=thinking,
        control_tokens=control_tokens,
        packing=packing,
        workers=workers,
    )
    code = data_options.code_transform(level, fim, fim_chat, fim_edit, seed, context)
    size = sum(file.path.stat().st_size for file in find_inputs(names, as_code=code is not None))
    with bytes_progress(size) as advance:
        info = PackedDirectory(output).pack(Tokenizer.load(model), settings, code, advance)
    if as_json:
        print_json(info)
    else:
        print(_as_text(info, output))


def _as_text(info: dict[str, Any], output: Path) -> str:
    from codemill.data.packed_directory import counts_of

    learned = info["learned_tokens"] / max(info["tokens"], 1)
    lines = [
        f"{info['records']:,} records, {info['documents']:,} documents, {info['tokens']:,} tokens; "
        f"learned: {info['learned_tokens']:,} ({learned:.1%})",
        f"{info['rows']:,} rows of {info['context']:,} places, {info['fill']:.2%} full",
    ]
    lines += counts_of(info).lines()
    if not info["reused"]:
        seconds = info["seconds"]
        rate = info["input_bytes"] / 1e6 / max(seconds["tokenise"], 1e-9)
        lines.append(f"tokenised in {seconds['tokenise']:.1f} s ({rate:.1f} MB/s), packed in {seconds['pack']:.2f} s")
    done = "packed already" if info["reused"] else "written"
    return "\n".join([*lines, f"{done}: {output / 'rows.npy'}"])


VERB = pack
