"""The coding agent: a loop in which a model asks for tools, and tools work on a repository. See docs/agent.md."""
