"""What tells the files of two whole models apart, wherever they are stored."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from rlaif.io.storage import fetch

_EDGE = 2**20


def whole_fingerprint(path: str) -> str:
    """Return 16 hex digits over the configuration and weight files of a whole model; a hub name stands for itself."""
    folder = Path(fetch(path))
    if not folder.is_dir():
        return path
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
