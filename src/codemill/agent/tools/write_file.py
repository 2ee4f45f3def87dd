"""`write_file`: makes a file, or replaces all of it."""

from pathlib import Path

from codemill.agent.diff import count_changes, file_diff
from codemill.agent.tool import Arguments, Observation, Preview, ToolContext, ToolSpec


class WriteFileTool:
    """Writes a whole file."""

    spec = ToolSpec(
        "write_file",
        "edit",
        "Writes a whole file.",
        {"file_path": {"type": "string"}, "content": {"type": "string"}},
        required=(
            "file_path",
            "content",
        ),
    )

    def preview(self, arguments: Arguments, context: ToolContext) -> Preview:
        path = context.workspace.resolve(arguments["file_path"])
        context.workspace.check_known(path)
        name = context.workspace.name(path)
        return Preview(name, file_diff(name, _before(path, context), arguments["content"]))

    def run(self, arguments: Arguments, context: ToolContext) -> Observation:
        path = context.workspace.resolve(arguments["file_path"])
        context.workspace.check_known(path)
        before, is_new = _before(path, context), not path.exists()
        context.workspace.write(path, arguments["content"])
        name = context.workspace.name(path)
        diff = file_diff(name, before, arguments["content"])
        added, removed = count_changes(diff)
        return Observation(f"{'Made' if is_new else 'Wrote'} {name}: +{added} -{removed} lines.", shown=diff)


def _before(path: Path, context: ToolContext) -> str:
    return context.workspace.read(path).text if path.exists() else ""
