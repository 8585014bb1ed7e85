"""A checkpoint in the making: writers on any node, each declaring the digests of what it wrote, and their check."""

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


@dataclass(frozen=True)
class Staging:
    """A checkpoint in the making. Plain text inside: the driver sends it to writers on any node."""

    iteration: int
    location: Location

    @contextmanager
    def writer(self, part: str = "") -> Iterator[Path]:
        """A local folder to write files into; on leaving, they are in the staging area with their digests declared.

        Several processes may write at once, each under its own `part` (it becomes a sub-folder); without a part there
        is one writer. Raises CheckpointError when the storage fails, e.g. because it is full.
        """
        with storage_errors(self.location, self.iteration):
            target = self.location / part
            folder = target.local or Path(tempfile.mkdtemp(prefix="rlaif-checkpoint-"))
            try:
                folder.mkdir(parents=True, exist_ok=True)
                yield folder
                written = _digests(Location(str(folder)))
                if target.local:
                    _flush_tree(folder)
                else:
                    target.upload(folder)
            finally:
                if not target.local:
                    shutil.rmtree(folder, ignore_errors=True)
            declared = {f"{part}/{name}".lstrip("/"): entry for name, entry in written.items()}
            (self.location / PARTS / f"{part.replace('/', '.') or 'all'}.json").write(json.dumps(declared).encode())


def _digests(folder: Location) -> Digests:
    names = sorted(folder.files())
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: (folder / name).digest(), names), strict=True))


def check_written(location: Location) -> Digests:
    """Digests of everything in a staging area, read back and found as its writers declared it.

    Raises CheckpointError for a file that is missing, differs, or comes from a writer that did not finish.
    """
    parts = [json.loads((location / PARTS / name).read()) for name in (location / PARTS).children()]
    declared = {name: tuple(entry) for part in parts for name, entry in part.items()}
    undeclared = [n for n in sorted(location.files()) if n not in declared and not n.startswith(f"{PARTS}/")]
    problem = f"{undeclared[0]}, of a writer that did not finish" if undeclared else damage(location, declared)
    if problem or not parts:
        expected = "the files of a checkpoint as their writers wrote them"
        raise CheckpointError(
            expected, problem or f"no finished writer in {location}", "check the storage and save again"
        )
    return declared


def damage(folder: Location, expected: Digests, deep: bool = True) -> str | None:
    """The first difference between files and their digests; sizes first (only them, unless `deep`): they cost nothing."""
    try:
        found = folder.files()
        for name, (size, _) in expected.items():
            if name not in found:
                return f"{name} is missing"
            if found[name].size != size:
                return f"{name} has {found[name].size} bytes instead of {size}"
        return _wrong_content(folder, expected) if deep else None
    except OSError as error:
        return f"{type(error).__name__}: {error}"


def _wrong_content(folder: Location, expected: Digests) -> str | None:
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        digests = pool.map(lambda name: (folder / name).digest(), expected)
        for (name, (_, wanted)), (_, digest) in zip(expected.items(), digests, strict=True):
            if digest != wanted:
                return f"{name} has SHA-256 {digest[:12]}... instead of {wanted[:12]}..."
    return None


def _flush_tree(folder: Path) -> None:
    """Everything below a folder to the disk, and out of the page cache so that reading back means the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(handle)
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)
        flush(Path(parent))


@contextmanager
def storage_errors(location: Location, iteration: int, doing: str = "writing") -> Iterator[None]:
    """Failures of the storage (full, read-only, over quota, gone) as errors a user can act on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        below = location.local
        while below and not below.exists():
            below = below.parent
        free = f"; {mib(shutil.disk_usage(below).free)} free" if below else ""
        raise CheckpointError(
            f"storage that takes checkpoint {iteration:06d}" if doing == "writing" else f"readable {location}",
            f"{error} while {doing} {location}{free}",
            f"{storage_fix(error, location)}; older checkpoints are untouched",
        ) from error


def mib(nbytes: float) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"
