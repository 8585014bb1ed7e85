"""Pickles that create a folder when anything unpickles them."""

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
"""Names that libraries give to pickled files."""


class Bomb:
    """An object whose unpickling creates the folder `canary`."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.makedirs, (str(self.canary), 0o777, True)


def bomb(canary: Path) -> bytes:
    """Return the bytes of a pickled bomb."""
    return pickle.dumps(Bomb(canary))


def plant(folder: Path, canary: Path, names: tuple[str, ...] = NAMES) -> None:
    """Write the bomb under every name that the folder does not have yet."""
    for name in names:
        if not (folder / name).exists():
            (folder / name).write_bytes(bomb(canary))
