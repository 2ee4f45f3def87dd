"""`list_directory`, `glob` and `grep_search`: what there is, and where."""

from collections.abc import Iterator
from pathlib import Path

from codemill.agent.file_index import SKIPPED, FileIndex
from codemill.agent.output import plain_name
from codemill.agent.search_process import search_files
from codemill.agent.tool import Arguments, Observation, Preview, ToolContext, ToolError, ToolSpec

MAX_ENTRIES = 200
MAX_MATCHES = 100


class ListDirectoryTool:
    """Lists a folder."""

    spec = ToolSpec(
        "list_directory",
        "read",
        "Lists a folder.",
        {"path": {"type": "string"}},
        required=("path",),
    )

    def preview(self, arguments: Arguments, context: ToolContext) -> Preview:
        return Preview(context.workspace.name(context.workspace.resolve(arguments["path"])))

    def run(self, arguments: Arguments, context: ToolContext) -> Observation:
        folder = context.workspace.resolve(arguments["path"])
        name = context.workspace.name(folder)
        if not folder.is_dir():
            raise ToolError(f"{name} is {'a file' if folder.exists() else 'not there'}: give a folder")
        entries = sorted(folder.iterdir(), key=lambda entry: (not entry.is_dir(), entry.name))
        lines = [plain_name(f"{entry.name}/" if entry.is_dir() else entry.name) for entry in entries]
        lines = [f"{line} [not searched]" if line.rstrip("/") in SKIPPED else line for line in lines]
        if len(lines) > MAX_ENTRIES:
            lines = [*lines[:MAX_ENTRIES], f"[{len(lines) - MAX_ENTRIES} more]"]
        return Observation("\n".join(lines) or "[the folder is empty]")


class GlobTool:
    """Finds files by name."""

    spec = ToolSpec(
        "glob",
        "read",
        "Finds files, such as src/**/*.py.",
        {"pattern": {"type": "string"}, "path": {"type": "string"}},
        required=("pattern",),
    )

    def preview(self, arguments: Arguments, context: ToolContext) -> Preview:
        return Preview(arguments["pattern"])

    def run(self, arguments: Arguments, context: ToolContext) -> Observation:
        folder = _folder(arguments, context)
        found = FileIndex(context.workspace, folder).glob(arguments["pattern"], context.cancel)
        names = [plain_name(context.workspace.name(path)) for path in found]
        if not names:
            return Observation(f"No file matches {arguments['pattern']}.")
        if len(names) > MAX_ENTRIES:
            names = [*names[:MAX_ENTRIES], f"[{len(names) - MAX_ENTRIES} more: use a narrower pattern]"]
        return Observation("\n".join(names))


class GrepSearchTool:
    """Finds lines."""

    spec = ToolSpec(
        "grep_search",
        "read",
        "Finds lines by a regular expression.",
        {
            "pattern": {"type": "string"},
            "glob": {"type": "string"},
            "path": {"type": "string"},
        },
        required=("pattern",),
    )

    def preview(self, arguments: Arguments, context: ToolContext) -> Preview:
        return Preview(arguments["pattern"])

    def run(self, arguments: Arguments, context: ToolContext) -> Observation:
        found = []
        for line in _search(arguments["pattern"], _files(arguments, context), context):
            found.append(line)
            if len(found) > MAX_MATCHES:
                found[MAX_MATCHES:] = [f"[more than {MAX_MATCHES} lines match: use a narrower pattern, glob or path]"]
                break
        return Observation("\n".join(found) or f"No line matches {arguments['pattern']}.")


def _folder(arguments: Arguments, context: ToolContext) -> Path:
    folder = context.workspace.resolve(arguments.get("path") or ".")
    if not folder.exists():
        raise ToolError(f"{context.workspace.name(folder)} is not there")
    return folder


def _files(arguments: Arguments, context: ToolContext) -> list[Path]:
    place = _folder(arguments, context)
    if place.is_file():
        return [place]
    index = FileIndex(context.workspace, place)
    found = index.glob(arguments["glob"], context.cancel) if arguments.get("glob") else index.paths
    return [path for path in found if not context.workspace.is_secret(path)]


def _search(pattern: str, paths: list[Path], context: ToolContext) -> Iterator[str]:
    names = [plain_name(context.workspace.name(path)) for path in paths]
    for file, number, line in search_files(pattern, [str(path) for path in paths], context.cancel):
        yield f"{names[file]}:{number}:{line}"
