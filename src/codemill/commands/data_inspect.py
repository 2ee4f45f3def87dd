"""`codemill data inspect`: which tokens of training data are learned."""

import os
import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.commands import data_options, options, print_json
from codemill.data.progress import bytes_progress
from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill.chat.tokenizer import Tokenizer
    from codemill.data.code_documents import CodeTransform
    from codemill.data.conversations import ConversationData
    from codemill.data.inspection import Inspection, ShownDocument, Stretch

EXAMPLES = """
codemill data inspect train.jsonl --model Qwen/Qwen3-Coder-30B-A3B-Instruct
codemill data inspect train.jsonl --model ./my-model --line 1207
codemill data inspect pairs.jsonl --limit 1 --json
codemill data inspect my-repository/ --level repository --fim 0.5
codemill data inspect packed/ --model ./my-model
"""
LEARNED, WEIGHTED, GIVEN, RESET = "\x1b[32m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def inspect(
    inputs: data_options.Inputs,
    model: options.Model = None,
    limit: Annotated[int, typer.Option(min=0, help="How many records are shown.")] = 3,
    line: Annotated[
        int | None, typer.Option(min=1, help="Show this line of the input, or row of packed data, alone.")
    ] = None,
    context: data_options.Context = 4096,
    only_last_turn_loss: data_options.OnlyLastTurnLoss = False,
    thinking: data_options.Thinking = "auto",
    control_tokens: data_options.ControlTokens = "text",
    level: data_options.Level = None,
    fim: data_options.Fim = 0.0,
    fim_chat: data_options.FimChat = 0.0,
    fim_edit: data_options.FimEdit = 0.0,
    seed: data_options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Show what training learns: green is learned, yellow with a weight other than 1, the rest is given.

    Without a terminal learned text stands between ⟦ and ⟧.
    """
    from codemill.chat.tokenizer import Tokenizer
    from codemill.data.conversations import ConversationData
    from codemill.data.packed_directory import PackedDirectory
    from codemill.data.packed_inspection import inspect_packed

    names = tuple(map(str, inputs))
    settings = ConversationData(
        names,
        context=context,
        only_last_turn_loss=only_last_turn_loss,
        thinking=thinking,
        control_tokens=control_tokens,
    )
    code = data_options.code_transform(level, fim, fim_chat, fim_edit, seed, context)
    directory = PackedDirectory(inputs[0])
    if len(inputs) == 1 and directory.is_there:
        found = inspect_packed(directory, Tokenizer.load(model), limit, line)
    else:
        found = _inspect_files(settings, code, Tokenizer.load(model), limit, line)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)


def _inspect_files(
    settings: "ConversationData", code: "CodeTransform | None", tokenizer: "Tokenizer", limit: int, line: int | None
) -> "Inspection":
    from dataclasses import replace

    from codemill.data.inspection import inspect as inspect_files
    from codemill.data.segments import find_inputs

    recipe = replace(settings.recipe("code" if code else "documents"), code=code)
    size = sum(file.path.stat().st_size for file in find_inputs(settings.train, as_code=code is not None))
    limit = limit if line is None else 1
    with bytes_progress(size) as advance:
        found = inspect_files(settings.train, tokenizer, recipe, settings.context, limit, line, advance)
    if line is not None and not found.records and not found.malformed:
        raise UsageError(f"--line {line}: there is no record")
    return found


def _print(found: "Inspection") -> None:
    in_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for shown in found.shown:
        label = f", {shown.label}" if shown.label else ""
        print(f"--- {shown.where}{label}: {shown.tokens:,} tokens, {shown.learned:,} learned")
        print(_as_text(shown, in_colour))
    print(_summary(found))


def _as_text(shown: "ShownDocument", in_colour: bool) -> str:
    return "".join(_stretch(stretch, in_colour) for stretch in shown.stretches).rstrip("\n")


def _stretch(stretch: "Stretch", in_colour: bool) -> str:
    text = _UNPRINTABLE.sub(lambda match: f"\\x{ord(match[0]):02x}", stretch.text)  # training data drives no terminal
    if in_colour:
        colour = GIVEN if not stretch.weight else LEARNED if stretch.weight == 1 else WEIGHTED
        return f"{colour}{text}{RESET}"
    weight = "" if stretch.weight == 1 else f"{stretch.weight:g}:"
    return f"⟦{weight}{text}⟧" if stretch.weight else text


def _summary(found: "Inspection") -> str:
    documents, learned = len(found.lengths), sum(found.learned)
    lines = [
        f"{found.records:,} records, {documents:,} documents, {found.tokens:,} tokens; "
        f"learned: {learned:,} ({found.learned_share:.1%})"
    ]
    if documents:
        ranks = found.percentiles()
        lengths = ", ".join(f"{name} {value:,}" for name, value in ranks.items() if name != "p100")
        lines.append(f"lengths: {lengths}, longest {ranks['p100']:,}")
        lines.append(f"longer than the context of {found.context:,}: {found.overlong:,}")
    if found.nothing_to_learn:
        lines.append(f"nothing to learn from: {found.nothing_to_learn:,}")
    if found.prompts:
        lines.append(f"prompts without an answer, for distillation on policy: {found.prompts:,}")
    if found.control_texts:
        lines.append(f"texts whose control tokens are read as text (--control-tokens): {found.control_texts:,}")
    if found.thoughts_left_out:
        lines.append(f"messages whose thoughts the chat template leaves out: {found.thoughts_left_out:,}")
    if found.malformed:
        lines.append(f"malformed: {found.malformed:,}")
    return "\n".join([*lines, *(f"  {fault}" for fault in found.faults)])


VERB = inspect
