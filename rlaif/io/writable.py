"""Whether a folder can be written, found out without leaving anything behind."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
SOCKET_LIMIT = 107
"""Bytes of a unix socket's path; Ray's own are below its folder of temporary files."""
SESSION = "ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""What Ray adds to that folder, with a process id as long as they get."""


def why_not_writable(folder: str | Path) -> str | None:
    """Return why no file can be written below `folder`, or None. The folder need not exist: its nearest parent that does
    is tried."""
    path = Path(folder).expanduser()
    try:
        while not path.exists():
            path = path.parent
        if not path.is_dir():
            return f"{path} is a file"
        # os.access asks for permission bits, which root and read-only file systems do not follow
        with tempfile.TemporaryDirectory(prefix=".rlaif-", dir=path) as probe:
            (Path(probe) / "probe").write_bytes(b"x")
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return None


def is_full(error: BaseException) -> bool:
    """Return whether a write failed because the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def cache_folders() -> dict[str, tuple[str, Path]]:
    """Return the folders that libraries write to without being told, by who uses them: (variable to set, folder)."""
    home = Path(os.path.expanduser("~"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    extensions = os.environ.get("TORCH_EXTENSIONS_DIR")
    triton = os.environ.get("TRITON_CACHE_DIR")
    triton_home = Path(os.environ.get("TRITON_HOME") or home)
    return {
        "copies of models and videos": ("XDG_CACHE_HOME", cache / "rlaif"),
        "vLLM": ("VLLM_CACHE_ROOT", Path(os.environ.get("VLLM_CACHE_ROOT") or cache / "vllm")),
        "operators that DeepSpeed builds": (
            "TORCH_EXTENSIONS_DIR",
            Path(extensions) if extensions else cache / "torch_extensions",
        ),
        "Triton": ("TRITON_CACHE_DIR", Path(triton) if triton else triton_home / ".triton"),
        "Ray and temporary files": ("TMPDIR", Path(os.environ.get("TMPDIR") or "/tmp")),
    }


def cache_problems() -> list[tuple[str, str, str]]:
    """Return (who writes there, why it cannot, what to do) for each cache folder that cannot be written."""
    problems = []
    for user, (variable, folder) in cache_folders().items():
        if reason := why_not_writable(folder):
            set_by = variable if os.environ.get(variable) else ("HOME" if variable != "TMPDIR" else variable)
            set_by = "XDG_CACHE_HOME" if _below_cache_home(folder) else set_by
            fix = f"set {variable} to a folder that can be written (it is below {set_by} now)"
            problems.append((user, f"{folder} cannot be written ({reason})", fix))
    return problems


def _below_cache_home(folder: Path) -> bool:
    home = os.environ.get("XDG_CACHE_HOME")
    return bool(home) and folder.is_relative_to(home)


def temporary_folder() -> tuple[str, str]:
    """Return the folder below which Ray keeps its sockets, and the variable that set it ("" for none)."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if folder := os.environ.get(name):
            return folder, name
    return "/tmp", ""


def socket_problem() -> tuple[str, str] | None:
    """Return (what is wrong, what to do) if Ray's sockets would have longer paths than the kernel takes."""
    folder, name = temporary_folder()
    length = len(os.fsencode(folder))
    excess = len(os.fsencode(os.path.join(folder, SESSION))) - SOCKET_LIMIT
    if excess <= 0:
        return None
    found = f"{name}={folder}: {length} bytes, of which Ray's sockets leave {length - excess}"
    return found, f"set {name} to a shorter path such as /tmp, or RAY_TMPDIR for Ray alone"
