"""What all tests of the package share."""

import pytest


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Servers of a test are on this machine, whatever the environment says of others."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
