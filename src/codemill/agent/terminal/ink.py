"""The few colours: those of the terminal's own palette, which its user chose to be readable."""

import os
from dataclasses import dataclass

CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}
COLOURS = frozenset(CODES) - {"bold", "dim"}


@dataclass(frozen=True)
class Ink:
    """Puts styles around text that is safe already. colour: whether there is any. plain: no control sequences."""

    colour: bool = True
    plain: bool = False

    @classmethod
    def from_environment(cls) -> "Ink":
        """NO_COLOR as https://no-color.org describes it."""
        return cls(colour=not os.environ.get("NO_COLOR"), plain=os.environ.get("TERM", "dumb") == "dumb")

    def __call__(self, text: str, *styles: str) -> str:
        """The text in these styles, line by line, so that none of them goes on if a line is cut out."""
        codes = ";".join(CODES[style] for style in styles if self.colour or style not in COLOURS)
        if self.plain or not codes or not text:
            return text
        return "\n".join(f"\x1b[{codes}m{line}\x1b[0m" if line else line for line in text.split("\n"))
