"""Errors that a user can act on. Each message is one line that says what to do; the command line prints it bare."""


class CodemillError(Exception):
    """The work failed for a reason the user can act on (exit status 1)."""


class UsageError(CodemillError):
    """The request itself was wrong: a bad value, an unknown name (exit status 2)."""
