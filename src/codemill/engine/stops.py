"""Stop strings in text that arrives in pieces. No torch here."""

from collections.abc import Sequence


class StopScanner:
    """Passes text on up to the first stop string, and holds back what may yet become one.

    The stop string that is complete first counts, the longest if several end together: so the text does not depend
    on how it was split into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """Take a piece; return what is certain to come before any stop string. Nothing follows one that was found."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        matches = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            _, start, self.found = min(matches)
            self._held = ""
            return text[:start]
        certain = len(text) - self._num_pending(text)
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """The text held back at the end, which became no stop string after all."""
        rest, self._held = self._held, ""
        return rest

    def _num_pending(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max(len(stop) for stop in self._stops) - 1
        for size in range(min(longest, len(text)), 0, -1):
            end = text[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
