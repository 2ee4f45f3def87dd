"""`codemill agent review`, `fix`, `sql` and `docs`: each registers itself from a file of its own."""

import typer

from codemill.commands import agent_docs, agent_fix, agent_review, agent_sql


def register(group: typer.Typer) -> None:
    """Add the workflows to the verbs of `codemill agent`."""
    for workflow in (agent_review, agent_fix, agent_docs, agent_sql):
        workflow.register(group)
