"""How a question to the user looks: what is about to happen, printed for good, and the keys that answer."""

from codemill.agent.terminal.call_view import INDENT, call_line
from codemill.agent.terminal.diff_view import num_lines, render_diff
from codemill.agent.terminal.ink import Ink
from codemill.agent.terminal.markdown import render_document
from codemill.agent.terminal.questions import Question
from codemill.agent.terminal.safe_text import safe_line, safe_text, visible_line, visible_text, width, wrap


class QuestionView:
    """Renders questions for a window."""

    def __init__(self, ink: Ink) -> None:
        self._ink = ink

    def preview(self, question: Question, columns: int, max_lines: int | None) -> str:
        """What would be done. max_lines: None for all of it."""
        request, ink = question.request, self._ink
        if question.is_plan:
            return f"{ink('The plan', 'bold')}\n\n{render_document(safe_text(request.preview.subject), columns, ink)}"
        about, name = visible_text(request.preview.subject), request.call.name
        is_short = "\n" not in about and width(about) + width(name) + 6 <= columns
        has_block = not request.preview.diff and not is_short
        heading = call_line(request.call, columns, ink, depth=int(question.is_second_agent), with_subject=not has_block)
        if request.preview.diff:
            return f"{heading}\n{render_diff(request.preview.diff, columns, ink, max_lines, cut_lines=False)}"
        return f"{heading}\n{self._block(about, max_lines)}" if has_block else heading

    def is_folded(self, question: Question, max_lines: int) -> bool:
        """Whether the preview leaves something out."""
        preview = question.request.preview
        return (num_lines(preview.diff) if preview.diff else preview.subject.count("\n") + 1) > max_lines

    def choices(self, question: Question, columns: int, folded: bool) -> list[str]:
        """The question itself, and a line for each key."""
        request, ink = question.request, self._ink
        who = "The second agent asks: allow this?" if question.is_second_agent else "Allow this?"
        ask = "Begin?" if question.is_plan else who
        reason = "" if question.is_plan else visible_line(request.reason)
        lines = [ink(line, "bold") for line in wrap(f"{ask} {reason}".rstrip(), columns)]
        if question.is_writing:
            return [*lines, ink("  Say what to do instead; Enter sends it, Esc goes back", "dim")]
        for key, words in self._keys(question, folded):
            first, *more = wrap(words, max(10, columns - 7))
            lines.append(f"  {ink(f'{key:<3}', 'cyan')}  {first}")
            lines += [f"       {line}" for line in more]
        return lines

    def _keys(self, question: Question, folded: bool) -> list[tuple[str, str]]:
        remember = safe_line(question.request.remember)
        if question.is_plan:
            keys = [("y", "yes, and ask before each change"), ("a", f"yes, with {remember}")]
        else:
            keys = [("y", "yes, once"), *([("a", f"always: {remember}")] if remember else [])]
        keys += [("e", "no, and say what to do instead"), ("n", "no")]
        keys += [("d", "show all of it")] if folded else []
        return [*keys, ("Esc", "stop the work")]

    def _block(self, text: str, max_lines: int | None) -> str:
        """A command of several lines, or a long one, which the terminal wraps."""
        lines = text.split("\n")
        hidden = 0 if max_lines is None else max(0, len(lines) - max_lines)
        shown = [f"{INDENT}{line}" for line in (lines[: len(lines) - hidden])]
        if hidden:
            shown.append(self._ink(f"{INDENT}… {hidden} more line{'' if hidden == 1 else 's'}", "dim"))
        return "\n".join(shown)
