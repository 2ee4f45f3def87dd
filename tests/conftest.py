"""Fixtures every test folder may use."""

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
