"""`edit`: replaces a text in a file."""

from pathlib import Path

from codemill.agent.diff import count_changes, file_diff
from codemill.agent.tool import Arguments, Observation, Preview, ToolContext, ToolError, ToolSpec
from codemill.agent.tools.edit_match import Edit, replace_text


class EditTool:
    """Replaces text; an empty `old_string` makes a new file."""

    spec = ToolSpec(
        "edit",
        "edit",
        "Replaces old_string, which must be exact and occur once.",
        {
            "file_path": {"type": "string"},
            "old_string": {"type": "string"},
            "new_string": {"type": "string"},
            "replace_all": {"type": "boolean"},
        },
        required=("file_path", "old_string", "new_string"),
    )

    def preview(self, arguments: Arguments, context: ToolContext) -> Preview:
        path, before, edit = self._edit(arguments, context)
        name = context.workspace.name(path)
        return Preview(name, file_diff(name, before, edit.text))

    def run(self, arguments: Arguments, context: ToolContext) -> Observation:
        path, before, edit = self._edit(arguments, context)
        context.workspace.write(path, edit.text)
        name = context.workspace.name(path)
        diff = file_diff(name, before, edit.text)
        added, removed = count_changes(diff)
        note = (
            " The indentation of old_string was not exact; new_string was moved accordingly." if edit.reindented else ""
        )
        times = f", {edit.count} times" if edit.count > 1 else ""
        return Observation(f"Edited {name}{times}: +{added} -{removed} lines.{note}", shown=diff)

    def _edit(self, arguments: Arguments, context: ToolContext) -> tuple[Path, str, Edit]:
        """The file, its text, and what becomes of it."""
        path = context.workspace.resolve(arguments["file_path"])
        old, new = arguments["old_string"], arguments["new_string"]
        if not old:
            return path, "", _new_file(path, new, context.workspace.name(path))
        # An edit says what it expects to find, so that the file need not have been read before.
        text = context.workspace.read(path).text
        return (
            path,
            text,
            replace_text(text, old, new, arguments.get("replace_all", False), context.workspace.name(path)),
        )


def _new_file(path: Path, text: str, name: str) -> Edit:
    if path.exists():
        raise ToolError(f"{name} exists: give as old_string what is to be replaced, or use write_file")
    return Edit(text, 1)
