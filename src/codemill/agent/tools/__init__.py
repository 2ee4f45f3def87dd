"""The agent's tools, a file each."""
