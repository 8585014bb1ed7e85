"""Fixtures for all tests of the package."""

import pytest


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Reach the servers of a test directly, even if the environment sets a proxy."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
