"""A Ray instance for the tests of this folder."""

import pytest
import ray


@pytest.fixture(scope="module")
def ray_session():
    """Yield Ray, connected to a cluster of its own on this machine."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024**2)
    yield ray
    ray.shutdown()
