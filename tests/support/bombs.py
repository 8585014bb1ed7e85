"""Pickles that leave a file behind when anything unpickles them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

NAMES = (
    "pytorch_model.bin",
    "adapter_model.bin",
    "optimizer.pt",
    "rng_state.pth",
    "training_args.bin",
    "state.pkl",
    "model.ckpt",
    "mp_rank_00_model_states.pt",
)
"""As libraries call what they pickle."""


class Bomb:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.makedirs, (str(self.canary), 0o777, True)


def bomb(canary: Path) -> bytes:
    return pickle.dumps(Bomb(canary))


def plant(folder: Path, canary: Path, names: tuple[str, ...] = NAMES) -> None:
    """Write the bomb under every name that is not taken."""
    for name in names:
        if not (folder / name).exists():
            (folder / name).write_bytes(bomb(canary))
