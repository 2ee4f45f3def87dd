"""`read_file` and `read_many_files`."""

from pathlib import Path

from codemill.agent.file_index import FileIndex
from codemill.agent.output import plain_name
from codemill.agent.tool import Arguments, Observation, Preview, ToolContext, ToolError, ToolSpec

MAX_LINES = 1000
MAX_LINE = 2000  # characters; what is longer is data, not code
MAX_FILES = 20


class ReadFileTool:
    """Reads a file, or some lines of it."""

    spec = ToolSpec(
        "read_file",
        "read",
        "Reads a file, or `limit` lines from `offset` (from 0).",
        {
            "absolute_path": {"type": "string"},
            "offset": {"type": "integer"},
            "limit": {"type": "integer"},
        },
        required=("absolute_path",),
    )

    def preview(self, arguments: Arguments, context: ToolContext) -> Preview:
        return Preview(context.workspace.name(context.workspace.resolve(arguments["absolute_path"])))

    def run(self, arguments: Arguments, context: ToolContext) -> Observation:
        path = context.workspace.resolve(arguments["absolute_path"])
        first, limit = arguments.get("offset", 0), arguments.get("limit", MAX_LINES)
        if first < 0 or limit < 1:
            raise ToolError("offset must be at least 0, and limit at least 1")
        return Observation(read_lines(path, context, first, min(limit, MAX_LINES)))


class ReadManyFilesTool:
    """Reads the files that patterns match."""

    spec = ToolSpec(
        "read_many_files",
        "read",
        "Reads files by paths or globs.",
        {"paths": {"type": "array", "items": {"type": "string"}}},
        required=("paths",),
    )

    def preview(self, arguments: Arguments, context: ToolContext) -> Preview:
        return Preview(", ".join(arguments["paths"]))

    def run(self, arguments: Arguments, context: ToolContext) -> Observation:
        paths = _matching(arguments["paths"], context)
        if not paths:
            raise ToolError(f"no file matches {', '.join(arguments['paths'])}")
        texts = [
            f"--- {plain_name(context.workspace.name(path))} ---\n{_read_or_say(path, context)}"
            for path in paths[:MAX_FILES]
        ]
        if len(paths) > MAX_FILES:
            rest = ", ".join(context.workspace.name(path) for path in paths[MAX_FILES : 2 * MAX_FILES])
            texts.append(f"[{len(paths) - MAX_FILES} more files match and were not read: {rest}]")
        return Observation("\n".join(texts))


def read_lines(path: Path, context: ToolContext, first: int = 0, limit: int = MAX_LINES) -> str:
    """Some lines of a file, and a note of what else it has."""
    lines = context.workspace.read(path).text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        return "[the file is empty]"
    if first >= len(lines):
        raise ToolError(f"{context.workspace.name(path)} has {len(lines)} lines: offset {first} is behind its end")
    shown = [
        line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]} [line cut]" for line in lines[first : first + limit]
    ]
    last = first + len(shown)
    if first or last < len(lines):
        shown.append(f"[lines {first + 1} to {last} of {len(lines)}]")
    return "\n".join(shown)


def _matching(patterns: list[str], context: ToolContext) -> list[Path]:
    found: dict[Path, None] = {}
    for pattern in patterns:
        is_pattern = any(character in pattern for character in "*?[")
        if is_pattern:
            matches = FileIndex(context.workspace).glob(pattern, context.cancel)
            found.update(dict.fromkeys(path for path in matches if not context.workspace.is_secret(path)))
        else:
            found[context.workspace.resolve(pattern)] = None
    return list(found)


def _read_or_say(path: Path, context: ToolContext) -> str:
    try:
        return read_lines(path, context)
    except ToolError as error:
        return f"[{error}]"
