"""Tests that run an engine or a learner in their own process get the switches that actors get, before torch is imported.

What hides devices is left out: the same process starts clusters with pretended GPUs, and tests that need a real one.
"""

import os

from cluster.env import actor_env

for name, value in actor_env().items():
    if name not in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        os.environ.setdefault(name, value)
