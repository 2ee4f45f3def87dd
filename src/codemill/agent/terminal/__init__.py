"""The interactive terminal of `codemill agent`: a prompt line that stays usable while the agent works above it."""

from typing import TYPE_CHECKING

from codemill.errors import CodemillError

if TYPE_CHECKING:
    from codemill.agent.model import Model
    from codemill.agent.session import Session
    from codemill.agent.session_store import SessionStore
    from codemill.agent.workbench import AgentOptions


def run_terminal(options: "AgentOptions", model: "Model", session: "Session", store: "SessionStore") -> int:
    """Talk with the user until they end it -> the exit status. Raises CodemillError if nothing can be begun."""
    import os
    from importlib.util import find_spec

    if find_spec("prompt_toolkit") is None:
        raise CodemillError("the terminal needs prompt_toolkit: pip install 'codemill[agent]', or use -p TASK")
    if os.environ.get("TERM", "dumb") == "dumb":
        from codemill.agent.terminal.plain_terminal import PlainTerminal

        return PlainTerminal(options, model, session, store).run()
    from codemill.agent.terminal.terminal import Terminal

    return Terminal(options, model, session, store).run()
