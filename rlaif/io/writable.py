"""Checks whether folders can be written, which leave nothing behind."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

_FULL = (errno.ENOSPC, errno.EDQUOT)
SOCKET_LIMIT = 107
"""Bytes that the kernel takes for the path of a unix socket; Ray's own are below its folder of temporary files."""
SESSION = "ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""What Ray adds to that folder. Its process id has seven digits, as long as they get."""


class Obstacle(NamedTuple):
    """Something on this machine that keeps a run from starting."""

    user: str
    """The library, or the part of this project, that it keeps from working."""
    found: str
    fix: str
    """An imperative sentence."""


def why_not_writable(folder: str | Path) -> str | None:
    """Return why no file can be written below `folder`, or None.

    The folder need not exist: its nearest parent that exists is tried.
    """
    path = Path(folder).expanduser()
    try:
        while not path.exists():
            path = path.parent
        if not path.is_dir():
            return f"{path} is a file"
        # os.access reads permission bits, which neither root nor read-only file systems follow, so a file is written.
        with tempfile.TemporaryDirectory(prefix=".rlaif-", dir=path) as probe:
            (Path(probe) / "probe").write_bytes(b"x")
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return None


def is_full(error: BaseException) -> bool:
    """Return whether a write failed because the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def cache_folders() -> dict[str, tuple[str, Path]]:
    """Return the folders that libraries write to by default: (variable that changes it, folder) by who uses it."""
    home = Path(os.path.expanduser("~"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    vllm = os.environ.get("VLLM_CACHE_ROOT") or cache / "vllm"
    extensions = os.environ.get("TORCH_EXTENSIONS_DIR") or cache / "torch_extensions"
    triton_home = Path(os.environ.get("TRITON_HOME") or home)
    triton = os.environ.get("TRITON_CACHE_DIR") or triton_home / ".triton"
    temporary = os.environ.get("TMPDIR") or "/tmp"
    return {
        "copies of models and videos": ("XDG_CACHE_HOME", cache / "rlaif"),
        "vLLM": ("VLLM_CACHE_ROOT", Path(vllm)),
        "operators that DeepSpeed builds": ("TORCH_EXTENSIONS_DIR", Path(extensions)),
        "Triton": ("TRITON_CACHE_DIR", Path(triton)),
        "Ray and temporary files": ("TMPDIR", Path(temporary)),
    }


def cache_problems() -> list[Obstacle]:
    """Return an obstacle for each cache folder that cannot be written."""
    problems = []
    for user, (variable, folder) in cache_folders().items():
        reason = why_not_writable(folder)
        if reason:
            source = _source_of(variable, folder)
            fix = f"Set {variable} to a folder that can be written (it is below {source} now)."
            problems.append(Obstacle(user, f"{folder} cannot be written ({reason})", fix))
    return problems


def _source_of(variable: str, folder: Path) -> str:
    """Return the variable that a cache folder's path comes from now."""
    if _below_cache_home(folder):
        return "XDG_CACHE_HOME"
    if os.environ.get(variable) or variable == "TMPDIR":
        return variable
    return "HOME"


def _below_cache_home(folder: Path) -> bool:
    home = os.environ.get("XDG_CACHE_HOME")
    return bool(home) and folder.is_relative_to(home)


def temporary_folder() -> tuple[str, str]:
    """Return the folder below which Ray keeps its sockets, and the variable that set it ("" for none)."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        folder = os.environ.get(name)
        if folder:
            return folder, name
    return "/tmp", ""


def socket_problem() -> Obstacle | None:
    """Return an obstacle if Ray's sockets would have longer paths than the kernel takes."""
    folder, name = temporary_folder()
    length = len(os.fsencode(folder))
    excess = len(os.fsencode(os.path.join(folder, SESSION))) - SOCKET_LIMIT
    if excess <= 0:
        return None
    text = f"{name}={folder}: {length} bytes, of which Ray's sockets leave {length - excess}"
    return Obstacle("Ray", text, f"Set {name} to a shorter path such as /tmp, or RAY_TMPDIR for Ray alone.")
