"""The loggers that `set_up_logging` changes, put back as they were."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("codemill", "uvicorn", "asyncio")


@contextmanager
def restored_logging() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    raises = logging.raiseExceptions
    try:
        yield
    finally:
        logging.raiseExceptions = raises
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
