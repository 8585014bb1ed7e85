"""Unfinished checkpoints: writers on any node declare the digests of what they wrote, which is then checked."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from rlaif.errors import CheckpointError
from rlaif.io.storage import Location, flush, storage_fix

Digests = dict[str, tuple[int, str]]
"""(bytes, SHA-256) by path relative to the checkpoint."""

PARTS = ".parts"
_HASH_THREADS = 4
"""Files that one process hashes at the same time; the ranks of a node do so at once, each for its own part."""


@dataclass(frozen=True)
class Staging:
    """An unfinished checkpoint. It holds only plain text, so the driver can send it to writers on any node."""

    iteration: int
    location: Location

    @contextmanager
    def writer(self, part: str = "") -> Iterator[Path]:
        """Yield a local folder to write files into; on leaving, they are in the staging area with their digests declared.

        Several processes may write at once, each under its own `part` (it becomes a sub-folder); without a part there
        is one writer. Raises CheckpointError if the storage fails, e.g. because it is full.
        """
        with storage_errors(self.location, self.iteration):
            target = self.location / part
            # Libraries write to paths: for a bucket they write to a local folder, which is then uploaded.
            folder = target.local or Path(tempfile.mkdtemp(prefix="rlaif-checkpoint-"))
            try:
                folder.mkdir(parents=True, exist_ok=True)
                yield folder
                # Of the local files, before an upload: the check then covers the upload too.
                digests = _digests(Location(str(folder)))
                if target.local:
                    _flush_tree(folder)
                else:
                    target.upload(folder)
            finally:
                if not target.local:
                    shutil.rmtree(folder, ignore_errors=True)
            declared = {f"{part}/{name}".lstrip("/"): entry for name, entry in digests.items()}
            # Written last: a file that no declaration names comes from a writer that did not finish.
            declaration = part.replace("/", ".") or "all"
            (self.location / PARTS / f"{declaration}.json").write(json.dumps(declared).encode())


def _digests(folder: Location) -> Digests:
    """Hash all files of a folder, several at a time."""
    names = sorted(folder.files())
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        digests = pool.map(lambda name: (folder / name).digest(), names)
        return dict(zip(names, digests, strict=True))


def check_written(location: Location) -> Digests:
    """Return the digests of everything in a staging area, read back and equal to what its writers declared.

    Raises CheckpointError for a file that is missing, differs, or comes from a writer that did not finish.
    """
    declared: Digests = {}
    parts = (location / PARTS).children()
    for part in parts:
        entries = json.loads((location / PARTS / part).read())
        for name, (size, digest) in entries.items():
            declared[name] = (size, digest)
    problem = _undeclared(location, declared) or damage(location, declared)
    if not problem and not parts:
        problem = f"no finished writer in {location}"
    if problem:
        expected = "the files of a checkpoint as their writers wrote them"
        raise CheckpointError(expected, problem, "Check the storage and save again.")
    return declared


def _undeclared(location: Location, declared: Digests) -> str | None:
    """Return what is wrong if a file in a staging area was declared by no writer."""
    for name in sorted(location.files()):
        if name not in declared and not name.startswith(f"{PARTS}/"):
            return f"{name}, of a writer that did not finish"
    return None


def damage(folder: Location, expected: Digests, deep: bool = True) -> str | None:
    """Return the first difference between files and their digests, None if there is none.

    Sizes are compared first, because they cost nothing; contents only if `deep`.
    """
    try:
        files = folder.files()
        for name, (size, _) in expected.items():
            if name not in files:
                return f"{name} is missing"
            actual = files[name].size
            if actual != size:
                return f"{name} has {actual} bytes instead of {size}"
        return _wrong_content(folder, expected) if deep else None
    except OSError as error:
        return f"{type(error).__name__}: {error}"


def _wrong_content(folder: Location, expected: Digests) -> str | None:
    """Return the first difference between the contents of files and their SHA-256."""
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        actual = pool.map(lambda name: (folder / name).digest(), expected)
        for (name, (_, declared)), (_, digest) in zip(expected.items(), actual, strict=True):
            if digest != declared:
                return f"{name} has SHA-256 {digest[:12]}... instead of {declared[:12]}..."
    return None


def _flush_tree(folder: Path) -> None:
    """Flush everything below a folder to the disk, and out of the page cache."""
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(handle)
                # Without this the check reads the page cache, and not what the disk has.
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)
        flush(Path(parent))


@contextmanager
def storage_errors(location: Location, iteration: int, doing: str = "writing") -> Iterator[None]:
    """Turn a failure of the storage (full, read-only, over quota, gone) into a CheckpointError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # The folder itself may not exist yet, or not any more.
        below = location.local
        while below and not below.exists():
            below = below.parent
        free = f"; {mib(shutil.disk_usage(below).free)} free" if below else ""
        raise CheckpointError(
            f"storage that takes checkpoint {iteration:06d}" if doing == "writing" else f"readable {location}",
            f"{error} while {doing} {location}{free}",
            storage_fix(error, location) + " Older checkpoints are untouched.",
        ) from error


def mib(nbytes: float) -> str:
    """Format a number of bytes in MiB."""
    return f"{nbytes / 2**20:,.1f} MiB"
