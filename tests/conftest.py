"""Fixtures every test folder may use."""

import signal
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public test data that lies beside some checkouts; tests that need it skip elsewhere."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip("the shared test data does not lie beside this checkout")
    return data


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Ctrl-C works in this process and its children, also where a shell started the tests in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
