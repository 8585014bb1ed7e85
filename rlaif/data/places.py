"""Check the paths that a user gives before anything is read: an error names the argument, and nothing is written."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rlaif.errors import DataError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""One slash: pathlib has made `s3:/bucket` of `s3://bucket` by the time that it gets here."""


def check_local(**paths: Path | str | None) -> None:
    """Raise DataError for a bucket's URI and for a path with a NUL. Keys are arguments: `video_dir` is --video-dir."""
    for name, path in paths.items():
        if path is None:
            continue
        option = _option(name)
        if _SCHEME.match(str(path)):
            uri = re.sub(":/(?=[^/])", "://", str(path), count=1)
            fix = f"Copy the files to a local folder and give its path as {option}."
            raise DataError(f"a local path as {option}", f"the URI {uri}", fix)
        if "\0" in str(path):
            raise DataError(f"a path as {option}", "a NUL character in it", "Remove the character.")


def _option(name: str) -> str:
    return name if name.isupper() else f"--{name.replace('_', '-')}"


def check_folder(name: str, path: Path | None, exists: bool) -> None:
    """Raise DataError unless `path` is a folder, or (unless `exists`) may become one."""
    if path is None or path.is_dir():
        return
    expected, fix = f"a folder as {_option(name)}", f"Give a folder as {_option(name)}."
    if exists:
        what = "a file" if path.exists() else "nothing"
        raise DataError(expected, f"{what} at {path}", fix)
    if os.path.lexists(path):
        raise DataError(expected, f"a file at {path}", fix)
    _check_parent(name, path)


def check_target(path: Path) -> None:
    """Raise DataError for a file that cannot be written."""
    if path.is_dir():
        raise DataError("a file to write as OUT", f"the folder {path}", "Name a file in it.")
    _check_parent("OUT", path)


def _check_parent(name: str, path: Path) -> None:
    """Raise DataError unless the closest thing above `path` is a folder that can be written to."""
    option = _option(name)
    fix = f"Give another path as {option}."
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise DataError(f"a path below a folder as {option}", f"the file {above}", fix)
    if not os.access(above, os.W_OK | os.X_OK):
        raise DataError(f"a folder that can be written to for {option}", f"{above} cannot", fix)
