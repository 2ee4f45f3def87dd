"""Which pages there are, and from what they were written: a file beside them."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from codemill.errors import CodemillError

FILE = ".manifest.json"
VERSION = 1


@dataclass(frozen=True)
class Page:
    """file: below the folder of pages. source, content: digests of what it was written from, and of what it was."""

    file: str
    source: str
    content: str


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def read_manifest(folder: Path) -> dict[str, Page]:
    """The pages by the names of their sources. Raises CodemillError for a file that is damaged."""
    file = folder / FILE
    try:
        content = json.loads(file.read_text("utf-8"))
        if content["version"] != VERSION:
            raise CodemillError(f"{file}: of version {content['version']}: delete it to have all pages written anew")
        return {source: Page(**page) for source, page in content["pages"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CodemillError(f"{file} cannot be read ({error}): delete it to have all pages written anew") from None


def manifest_text(pages: dict[str, Page]) -> str:
    entries = {source: asdict(page) for source, page in sorted(pages.items())}
    return json.dumps({"version": VERSION, "pages": entries}, indent=1, ensure_ascii=False) + "\n"
