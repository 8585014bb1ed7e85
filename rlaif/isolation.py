"""Protection of our packages against folders of the same name elsewhere on Python's path.

`cluster`, `actors` and `learners` are ordinary words. The working directory, which contains a user's own functions, comes
first on the path with `python -m rlaif` and in every Ray worker.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

PACKAGES = ("actors", "cluster", "learners")
HOOK = "rlaif.isolation.pin_packages"
"""The function that Ray calls in each worker before it runs our code (`worker_process_setup_hook`)."""

_ROOT = Path(__file__).resolve().parents[1]


def pin_packages() -> None:
    """Load our packages from beside this one, so that imports find them without a search of the path."""
    for name in PACKAGES:
        folder = _ROOT / name
        if name not in sys.modules or not _is_ours(name, folder):
            _load(name, folder)


def _load(name: str, folder: Path) -> None:
    """Load the package in a folder, in place of one of the same name that is loaded already."""
    file = folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(folder)])
    module = importlib.util.module_from_spec(spec)
    for loaded in list(sys.modules):
        if loaded == name or loaded.startswith(f"{name}."):
            del sys.modules[loaded]
    # Before its code runs, as an import does it: the package may import its own modules.
    sys.modules[name] = module
    spec.loader.exec_module(module)


def working_directory_last() -> None:
    """Move the working directory to the end of the path, so that a user's functions can still be imported from it.

    Our own checkout keeps its place.
    """
    here = os.getcwd()
    entries = []
    for entry in sys.path:
        if entry not in ("", here) or Path(entry or here) == _ROOT:
            entries.append(entry)
    sys.path[:] = [*entries, here]


def _is_ours(name: str, folder: Path) -> bool:
    """Check whether a loaded package is the one in a folder."""
    paths = getattr(sys.modules[name], "__path__", [])
    return [Path(path).resolve() for path in paths] == [folder]
