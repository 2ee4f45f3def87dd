"""What can be checked in a page that a model wrote: links to lines of source, and diagrams."""

import re
from collections.abc import Callable, Iterator

LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\(([^()\s]+)\)")
LINE = re.compile(r"(?:#L|:)(\d+)(?:-L?\d+)?$")
FENCE = re.compile(r"^ {0,3}```(\w*)[^\n]*\n(.*?)^ {0,3}```[ \t]*$", re.DOTALL | re.MULTILINE)
IDENTIFIER = re.compile(r"`?([A-Za-z_]\w*)(?:\(\))?`?$")
DIAGRAMS = re.compile(
    r"(graph|flowchart)\s+(TB|TD|BT|RL|LR)\b|(sequenceDiagram|classDiagram|stateDiagram(-v2)?|erDiagram|journey|gantt|pie"
    r"|mindmap|timeline|gitGraph|quadrantChart|requirementDiagram|C4Context|block-beta|architecture-beta)\b"
)
# Arrows that have brackets in them which nothing closes.
ARROWS = {
    "erDiagram": re.compile(r"[|}o][|o]?(--|\.\.)[|o]?[|{o]"),
    "sequenceDiagram": re.compile(r"--?\)|:.*"),
    "classDiagram": re.compile(r":.*"),
}
PAIRS = {")": "(", "]": "[", "}": "{"}
NEAR = 2  # lines that a name may be away from the line that is linked

Lines = Callable[[str], list[str] | None]  # a file's lines by its name in the project; None if there is no such file


def page_problems(page: str, lines_of: Lines) -> list[str]:
    """What is wrong with a page, a line each."""
    prose = _without_code(page)
    links = [(match[1], match[2], link_problem(match[1], match[2], lines_of)) for match in LINK.finditer(prose)]
    problems = [f"the link [{text}]({target}) {problem}" for text, target, problem in links if problem]
    problems += [f"a Mermaid diagram {problem}" for code in diagrams(page) if (problem := diagram_problem(code))]
    if page.count("\n```") % 2 != page.startswith("```"):
        problems.append("a ``` block is not closed")
    return problems


def link_problem(text: str, target: str, lines_of: Lines) -> str:
    """What is wrong with a link to a file of the project; empty if nothing is, or it leads elsewhere."""
    if re.match(r"[a-z]+:|#", target):
        return ""
    match = LINE.search(target)
    path = target[: match.start()] if match else target.partition("#")[0]
    lines = lines_of(path)
    if lines is None:
        return "leads to no file of the project"
    if match is None:
        return ""
    line = int(match[1])
    if not 1 <= line <= len(lines):
        return f"leads to line {line}, and the file has {len(lines)}"
    name = IDENTIFIER.match(text)
    near = "\n".join(lines[max(line - 1 - NEAR, 0) : line + NEAR])
    if name and text.startswith("`") and not re.search(rf"\b{re.escape(name[1])}\b", near):
        return f"leads to line {line}, where there is no {name[1]}"
    return ""


def diagrams(page: str) -> Iterator[str]:
    """The Mermaid blocks of a page."""
    return (match[2] for match in FENCE.finditer(page) if match[1] == "mermaid")


def diagram_problem(code: str) -> str:
    """What is wrong with a Mermaid diagram, as far as that can be seen without Mermaid; empty if nothing is."""
    lines = [line.strip() for line in code.splitlines() if line.strip() and not line.strip().startswith("%%")]
    if not lines:
        return "is empty"
    header = DIAGRAMS.match(lines[0])
    if not header:
        return f"begins with {lines[0][:40]!r}, which is no kind of diagram"
    arrows = ARROWS.get(header[3] or "")
    opened: list[str] = []
    for line in lines[1:]:
        bare = re.sub(r'"[^"]*"', "", line)
        if problem := _bracket_problem(arrows.sub("", bare) if arrows else bare, opened):
            return f"{problem} in {line!r}"
    if opened:
        return f"has a {opened[-1]!r} that is not closed"
    words = [line.split()[0] for line in lines]
    if header[1] and words.count("subgraph") != words.count("end"):
        return "has a subgraph without end"
    return ""


def repaired(page: str, lines_of: Lines) -> str:
    """The page without what is wrong in it: such links become their texts, and such diagrams are left out."""

    def fence(match: re.Match[str]) -> str:
        return "" if match[1] == "mermaid" and diagram_problem(match[2]) else match[0]

    def link(match: re.Match[str]) -> str:
        return match[1] if link_problem(match[1], match[2], lines_of) else match[0]

    return _outside_code(FENCE.sub(fence, page), lambda prose: LINK.sub(link, prose))


def with_targets(page: str, change: Callable[[str], str]) -> str:
    """The page with other targets of its links into the project."""

    def link(match: re.Match[str]) -> str:
        target = match[2]
        return match[0] if re.match(r"[a-z]+:|#", target) else f"[{match[1]}]({change(target)})"

    return _outside_code(page, lambda prose: LINK.sub(link, prose))


def _bracket_problem(line: str, opened: list[str]) -> str:
    """opened: the brackets that are open, which is changed."""
    for character in line:
        if character in "([{":
            opened.append(character)
        elif character in PAIRS and (not opened or opened.pop() != PAIRS[character]):
            return f"has a {character!r} too many"
    return ""


def _without_code(page: str) -> str:
    return FENCE.sub("", page)


def _outside_code(page: str, change: Callable[[str], str]) -> str:
    """Change what is not in a fenced block."""
    parts, end = [], 0
    for match in FENCE.finditer(page):
        parts += [change(page[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, change(page[end:])])
