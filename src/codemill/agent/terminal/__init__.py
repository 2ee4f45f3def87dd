"""The interactive terminal of `codemill agent`: a prompt line that stays usable while the agent works above it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codemill.agent.model import Model
    from codemill.agent.session import Session
    from codemill.agent.session_store import SessionStore
    from codemill.agent.workbench import AgentOptions


def run_terminal(options: "AgentOptions", model: "Model", session: "Session", store: "SessionStore") -> int:
    """Talk with the user until they end it -> the exit status. Raises CodemillError if nothing can be begun."""
    import os

    if os.environ.get("TERM", "dumb") == "dumb":
        from codemill.agent.terminal.plain_terminal import PlainTerminal

        return PlainTerminal(options, model, session, store).run()
    from codemill.agent.terminal.terminal import Terminal

    return Terminal(options, model, session, store).run()
