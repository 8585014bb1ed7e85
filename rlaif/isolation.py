"""Folders of the same name elsewhere on the path do not take the place of our packages.

`cluster`, `actors` and `learners` are ordinary words, and the working directory, which holds a user's own functions, may
come first on Python's path: with `python -m rlaif`, and in every Ray worker.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

PACKAGES = ("actors", "cluster", "learners")
HOOK = "rlaif.isolation.pin_packages"
"""What Ray calls in each worker before it runs anything of ours (`worker_process_setup_hook`)."""

_ROOT = Path(__file__).resolve().parents[1]


def pin_packages() -> None:
    """Load our packages from beside this one, so that imports find them without asking the path."""
    for name in PACKAGES:
        folder = _ROOT / name
        if name in sys.modules and _is_ours(name, folder):
            continue
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        module = importlib.util.module_from_spec(spec)
        for other in [loaded for loaded in sys.modules if loaded == name or loaded.startswith(f"{name}.")]:
            del sys.modules[other]
        sys.modules[name] = module
        spec.loader.exec_module(module)


def working_directory_last() -> None:
    """Let a user's functions be imported from the working directory, after everything that is installed."""
    here = os.getcwd()
    sys.path[:] = [entry for entry in sys.path if entry not in ("", here) or Path(entry or here) == _ROOT]
    sys.path.append(here)


def _is_ours(name: str, folder: Path) -> bool:
    paths = getattr(sys.modules[name], "__path__", [])
    return [Path(path).resolve() for path in paths] == [folder]
