"""What users set down for the agent in files: rules for commands, MCP servers, and facts to remember.

The user's own file is `agent.json` in `$XDG_CONFIG_HOME/codemill`; a project's is `.codemill/agent.json`. A project may
only ask for more questions and denials, never for fewer: its file may come with a repository that nobody has read.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codemill.agent.command_rules import CommandRules
from codemill.errors import UsageError

FILE = "agent.json"
KEYS = ("allow", "ask", "deny", "mcpServers")


@dataclass(frozen=True)
class Configuration:
    """allow, ask, deny: patterns of commands. mcp_servers: as in the customary `mcpServers` object."""

    allow: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    mcp_servers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def command_rules(self) -> CommandRules:
        """Raises UsageError for a pattern that cannot be read."""
        return CommandRules(self.allow, self.ask, self.deny)


def config_folder() -> Path:
    """Where the user's own files are."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "codemill"


def state_folder() -> Path:
    """Where sessions are kept. The XDG base directory specification has paths that are not absolute ignored."""
    given = os.environ.get("XDG_STATE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".local/state") / "codemill"


def read_configuration(root: Path) -> Configuration:
    """The user's file and the project's. Raises UsageError naming the file and what is wrong with it."""
    user, project = _read(config_folder() / FILE), _read(root / ".codemill" / FILE)
    return Configuration(
        allow=user.allow,
        ask=(*user.ask, *project.ask),
        deny=(*user.deny, *project.deny),
        mcp_servers=user.mcp_servers,
    )


def _read(file: Path) -> Configuration:
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return Configuration()
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file}: must be a JSON object with {', '.join(KEYS)}")
    for key, value in content.items():
        if key not in KEYS:
            raise UsageError(f"{file}: unknown key {key!r}; choose {', '.join(KEYS)}")
        if not _is_right(key, value):
            raise UsageError(f"{file}: {key} must be {'an object' if key == 'mcpServers' else 'a list of texts'}")
    lists = {key: tuple(content.get(key, ())) for key in ("allow", "ask", "deny")}
    return Configuration(**lists, mcp_servers=content.get("mcpServers", {}))


def _is_right(key: str, value: Any) -> bool:
    if key == "mcpServers":
        return isinstance(value, dict)
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
