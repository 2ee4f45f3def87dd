"""The configurations in docs/clients, as the tests use them: what a page says is what is run."""

import re
from pathlib import Path

PAGES = Path(__file__).resolve().parents[2] / "docs" / "clients"
ADDRESS = "http://127.0.0.1:8000"  # of the server, on all pages
FILE = re.compile(r"^`([^`\n]+)`[^`]*(?:`[^`\n]+`[^`]*)*?\n```(?:json|toml|yaml)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXPORT = re.compile(r"^export (\w+)=(\S+)$", re.MULTILINE)
PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Page:
    """A page, for a server at `url`."""

    def __init__(self, name: str, url: str) -> None:
        self._text = PAGES.joinpath(f"{name}.md").read_text(encoding="utf-8").replace(ADDRESS, url)

    @property
    def files(self) -> dict[str, str]:
        """Text of each file by its name; a name begins with ~/ unless the file lies in the project."""
        return dict(FILE.findall(self._text))

    @property
    def variables(self) -> dict[str, str]:
        """What is set in the shell."""
        return dict(EXPORT.findall(self._text))

    @property
    def program(self) -> str:
        """The Python program."""
        (found,) = PROGRAM.findall(self._text)
        return str(found)

    def write_files(self, home: Path, work: Path) -> None:
        """Put each file where the page says."""
        for name, text in self.files.items():
            path = home / name.removeprefix("~/") if name.startswith("~/") else work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
