"""Tests that run an engine or a learner in their own process get the switches that actors get, before torch is imported.

Switches that hide devices are not set: the same process starts clusters with pretended GPUs, and tests that need a real one.
"""

import os
from pathlib import Path

from cluster.env import actor_env

LONG = [Path(__file__).parent / name for name in ("rlaif/stages", "actors", "learners", "cluster", "test_families.py")]
"""Tests that start actors and engines."""

for name, value in actor_env().items():
    if name not in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        os.environ.setdefault(name, value)


def pytest_collection_modifyitems(items):
    """Start with the long files: many quick ones at the end keep all processes busy."""
    items.sort(key=lambda item: not any(item.path.is_relative_to(path) for path in LONG))
