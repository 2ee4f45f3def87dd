"""Keys and passwords in texts: they are masked before a model sees them, and before they are written to a file.

Only shapes that leave no doubt are taken for one; a password in a line of code such as `password = "x"` stays.
"""

import re
from collections.abc import Mapping
from typing import Any

MASK = "[secret masked by codemill]"
PLACEHOLDERS = frozenset({"password", "passwd", "pass", "secret", "postgres", "root", "admin", "guest", "user", "test"})

_BODY = r"(?:[A-Za-z0-9+/=\s:,|→>]|\\[nr]|-(?!-)){32,}"
_PRIVATE_KEY = re.compile(
    rf"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----{_BODY}(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----)?"
)
_TOKEN = re.compile(
    r"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt]))(?:"  # in JSON, the end of a line may be written as \n before it
    # OpenAI, Anthropic, and those that write keys as they do; a name in words has no digits and capitals.
    r"sk-(?=[a-z_-]*[A-Z0-9])(?=[A-Z0-9_-]*[a-z])(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}"
    r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,}|glpat-[A-Za-z0-9_-]{20,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|AIza[A-Za-z0-9_-]{35}"
    r"|xox[abposr]-[A-Za-z0-9-]{20,}"
    r"|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{40,}"
    r"|[rs]k_live_[A-Za-z0-9]{20,}"  # Stripe
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}"  # a JSON web token
    r")"
)
# What `env` prints and .env files hold. A value that begins with $ < { ( or has calls in it is no value.
_VARIABLE = re.compile(
    r"((?:(?<![A-Za-z0-9_])|(?<=\\n))"
    r"[A-Z0-9_]{0,40}(?:PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_KEY|PRIVATE_KEY)[A-Z0-9_]{0,20}=(?:\\?[\"'])?)"
    r"([^\s\"'$<>{}()\[\]\\]{6,}+)(?![(\[{])"
)
_URL = re.compile(r"(://([^\s:/@\"'\\]+):)([^\s@/\"'\\$<>{}]{3,})(?=@)")


def mask_secrets(text: str) -> str:
    """The text with `MASK` in place of each key or password."""
    if "PRIVATE KEY" in text:
        text = _PRIVATE_KEY.sub(MASK, text)
    text = _TOKEN.sub(MASK, text)
    text = _VARIABLE.sub(lambda found: found[1] + (found[2] if _is_placeholder(found[2]) else MASK), text)
    return _URL.sub(lambda found: found[1] + (found[3] if _is_placeholder(found[3], found[2]) else MASK), text)


def mask_all(value: Any) -> Any:
    """A JSON value with the secrets in all of its texts masked."""
    if isinstance(value, str):
        return mask_secrets(value)
    if isinstance(value, Mapping):
        return {key: mask_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask_all(item) for item in value]
    return value


def has_mask(value: Any) -> bool:
    """Whether a text of a JSON value was masked, so that it must not be written in the place of what it stands for."""
    if isinstance(value, str):
        return MASK in value
    if isinstance(value, Mapping):
        return any(map(has_mask, value.values()))
    return isinstance(value, list | tuple) and any(map(has_mask, value))


def _is_placeholder(value: str, user: str = "") -> bool:
    return value.lower() in PLACEHOLDERS or value == user
