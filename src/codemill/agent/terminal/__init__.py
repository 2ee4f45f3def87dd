"""The interactive terminal of `codemill agent`: a prompt line that stays usable while the agent works above it."""
