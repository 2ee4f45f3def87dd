"""What clients send that nobody here knows: left out, with a line in the log."""

import logging
from typing import Any

MOST_KINDS = 100
_seen: set[tuple[str, str]] = set()
log = logging.getLogger(__name__)


def note_unknown(what: str, kind: Any) -> None:
    """Log that things of this kind are left out; once each, and no more than so many, so that nobody fills the log."""
    entry = (what, repr(kind)[:40])
    if entry not in _seen and len(_seen) < MOST_KINDS:
        _seen.add(entry)
        log.info("%s of type %s is not known, and left out", *entry)
