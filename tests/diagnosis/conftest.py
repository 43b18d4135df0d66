"""An environment without credentials or endpoints for every test of this folder."""

import pytest


@pytest.fixture(autouse=True)
def no_credentials(plain_environment: None, obstore_runtime: None) -> None:
    """Apply the shared fixtures to tests that examine settings with a bucket."""
