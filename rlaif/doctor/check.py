"""One finding of the doctor, and the child processes in which libraries are tried."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

#: What to do where nothing better is known.
REINSTALL = "make clean install"


@dataclass(frozen=True)
class Check:
    """One finding. `fix` says what to do about it and is empty where nothing needs doing."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


class ProbeError(Exception):
    """A child process that imported a library ended badly; the message is its last line."""


def probe(code: str, timeout_s: float = 300.0) -> str:
    """Run Python `code` in a process of its own and return the last line it printed; ProbeError if it fails."""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s, check=False)
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
        raise ProbeError(lines[-1])
    return child.stdout.strip().splitlines()[-1]
