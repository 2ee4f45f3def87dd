"""Long pastes: the prompt line shows a short sign for each, and the message gets the whole text."""

from codemill.agent.terminal.safe_text import SEQUENCE

MAX_LINES = 8
MAX_CHARACTERS = 800


class Pastes:
    """What was pasted since the last message."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def take(self, text: str) -> str:
        """A paste -> what to put into the prompt line."""
        text = SEQUENCE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
        num_lines = text.count("\n") + 1
        if num_lines <= MAX_LINES and len(text) <= MAX_CHARACTERS:
            return text
        size = f"{num_lines} lines" if num_lines > 1 else f"{len(text):,} characters"
        sign = f"[paste {len(self._texts) + 1}: {size}]"
        self._texts[sign] = text
        return sign

    def expand(self, text: str) -> str:
        """The message with the whole pastes in it."""
        for sign, pasted in self._texts.items():
            text = text.replace(sign, pasted)
        return text
