"""Files of named tensors and small records: safetensors and JSON, so that loading a file never runs code from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlaif.errors import CheckpointError


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray | torch.Tensor]) -> None:
    """Write tensors or arrays under their names; views and device tensors are copied to contiguous host memory.

    Raises OSError or SafetensorError if the disk is full or cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    host: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if isinstance(tensor, np.ndarray) and not tensor.flags.writeable:
            # Arrays from Ray's object store are read-only, about which torch warns.
            tensor = tensor.copy()
        tensor = torch.as_tensor(tensor).detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # Tied weights share memory, which safetensors refuses: each name gets its own copy.
        host[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    save_file(host, path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return tensors by name, in host memory. Raises CheckpointError for anything that is not a safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise CheckpointError(
            f"a safetensors file at {path}", str(error), "Use another checkpoint or export."
        ) from error


def save_json(path: Path, record: Any) -> None:
    """Write a record. Floats survive exactly (shortest round-trip form). Raises ValueError for NaN and infinities."""
    # Readers in other languages refuse NaN, which Python would write.
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, allow_nan=False, indent=1), encoding="utf-8")


def load_json(path: Path) -> Any:
    """Return a record. Raises CheckpointError for a file that is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"JSON in {path}", str(error), "Use another checkpoint.") from error
