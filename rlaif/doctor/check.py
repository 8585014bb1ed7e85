"""A finding of the doctor, and the child processes in which it tries libraries."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

REINSTALL = "make clean install"
"""The fix if nothing better is known."""


@dataclass(frozen=True)
class Check:
    """One finding. `fix` says what to do about it; it is empty if nothing needs to be done."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


class ProbeError(Exception):
    """A child process that imported a library failed; the message is the last line that it printed."""


def run_probe(code: str, timeout_s: float = 300.0) -> str:
    """Run Python `code` in a process of its own and return the last line it printed. Raises ProbeError if it fails."""
    # A process of its own: a library that crashes on import, or that cannot be unloaded, must not affect other checks.
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s, check=False)
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
        raise ProbeError(lines[-1])
    return child.stdout.strip().splitlines()[-1]
