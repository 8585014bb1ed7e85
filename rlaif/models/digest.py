"""Digests of a folder's model files, wherever the folder is stored."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

_EDGE = 2**20
"""Bytes of each end of a weight file that are read: enough to tell two trainings apart, and instant for a large model."""


def weights_digest(folder: Path) -> str:
    """Return 16 hex digits over the configuration and weight files of a whole model."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    add_weights(digest, folder)
    return digest.hexdigest()[:16]


def add_weights(digest: Any, folder: Path) -> None:
    """Add what tells a folder's weight files from others: name, size, first and last megabyte of each."""
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as weights:
            digest.update(weights.read(_EDGE))
            weights.seek(max(0, size - _EDGE))
            digest.update(weights.read(_EDGE))
