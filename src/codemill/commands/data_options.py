"""Options that the verbs of `codemill data` share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill.data.code_documents import CodeTransform

Inputs = Annotated[
    list[Path],
    typer.Argument(
        metavar="INPUT...", help="JSON Lines or JSON (.gz or not), Parquet, text or code files; or folders."
    ),
]
Context = Annotated[int, typer.Option(min=2, help="Most tokens of a document, and places of a row.")]
OnlyLastTurnLoss = Annotated[
    bool, typer.Option("--only-last-turn-loss", help="Learn only the last answer of a conversation.")
]
Thinking = Annotated[str, typer.Option(help="What the chat template is told about thinking: on, off or auto, nothing.")]
ControlTokens = Annotated[
    str, typer.Option(help="What <|im_end|> and the like become in texts outside of chats: text, or tokens.")
]
Level = Annotated[
    str | None, typer.Option(metavar="LEVEL", help="Read source code: a document for each file, or each repository.")
]
Fim = Annotated[float, typer.Option(help="Share of source documents with a part left out, to be filled in.")]
FimChat = Annotated[float, typer.Option(help="Share with a part left out that a conversation asks for.")]
FimEdit = Annotated[float, typer.Option(help="Share with a part left out that a search-and-replace block puts in.")]
Seed = Annotated[int, typer.Option(help="Decides which documents get a hole, and where.")]


def code_transform(
    level: str | None, fim: float, fim_chat: float, fim_edit: float, seed: int, context: int
) -> "CodeTransform | None":
    """What the options say about source code; None if it is not read as such. Raises UsageError."""
    from codemill.data.code_documents import CodeTransform

    if level is None:
        if fim or fim_chat or fim_edit:
            raise UsageError("--fim, --fim-chat and --fim-edit are for source code: give --level file or repository")
        return None
    return CodeTransform(level, fim, fim_chat, fim_edit, seed, context)
