"""The line that the user types in: its history, its completions, its pastes."""

import os
from collections.abc import Callable
from pathlib import Path

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import Completer, ThreadedCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from codemill.agent.terminal.pastes import Pastes
from codemill.agent.terminal.safe_text import SEQUENCE


class PromptLine:
    """Wraps the buffer. history_file: None to keep what was typed in memory only."""

    def __init__(self, completer: Completer, history_file: Path | None, completes: Callable[[], bool]) -> None:
        self.history = _history(history_file)
        self.pastes = Pastes()
        self._draft = Document()
        self.buffer = Buffer(
            completer=ThreadedCompleter(completer),
            complete_while_typing=Condition(completes),
            history=self.history,
            multiline=True,
            tempfile_suffix=".md",
        )

    @property
    def is_empty(self) -> bool:
        return not self.buffer.text

    def take(self) -> str:
        """What was typed, with whole pastes; the line is empty then."""
        text = self.pastes.expand(self.buffer.text).strip("\n")
        self.pastes = Pastes()
        if text.strip():
            self.history.append_string(text)
        self.buffer.reset()
        return text

    def clear(self) -> None:
        """Throw away what was typed."""
        self.pastes = Pastes()
        self.buffer.reset()

    def put(self, text: str) -> None:
        """Put a text before what was typed meanwhile."""
        text = SEQUENCE.sub("", text)
        typed = self.buffer.text
        whole = f"{text}\n{typed}" if typed.strip() else text
        self.buffer.document = Document(whole, len(whole))

    def paste(self, text: str) -> None:
        """Insert a paste, a long one as a sign for it."""
        self.buffer.insert_text(self.pastes.take(text))

    def set_aside(self) -> None:
        """Keep what was typed for later, and empty the line."""
        if not self.is_empty:
            self._draft = self.buffer.document
        self.buffer.reset()

    def take_up(self) -> None:
        """What was set aside is in the line again."""
        self.buffer.reset()
        self.buffer.document, self._draft = self._draft, Document()

    def enter(self) -> bool:
        """Enter was pressed -> whether that sends the line: it may choose a completion, or begin a new line instead."""
        state = self.buffer.complete_state
        if state is not None and state.current_completion is not None:
            self.buffer.complete_state = None
            return self.buffer.text.startswith("/")
        if self.buffer.document.text_before_cursor.endswith("\\"):
            self.buffer.delete_before_cursor(1)
            self.buffer.insert_text("\n")
            return False
        return True


def _history(file: Path | None) -> History:
    """What was typed before, in a file that only the user can read."""
    if file is None:
        return InMemoryHistory()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(file)
