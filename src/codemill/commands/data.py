"""`codemill data`: training data, looked at, packed and cleaned."""

import typer

from codemill.commands import add_verb, data_clean, data_inspect, data_pack, epilog

EXAMPLES = """
codemill data inspect train.jsonl --model Qwen/Qwen3-Coder-30B-A3B-Instruct
codemill data pack train.jsonl --context 4096 --output packed/
codemill data clean train.jsonl --against humaneval --against mbpp
"""


def register(app: typer.Typer) -> None:
    text = "Training data: see what is learned of it, pack it, clean it of benchmarks."
    data = typer.Typer(help=text, epilog=epilog(EXAMPLES), rich_markup_mode=None)
    for module in (data_inspect, data_pack, data_clean):
        add_verb(data, module.VERB, module.EXAMPLES)
    app.add_typer(data, name="data")
