"""Checkpoints that survive a crash: written aside, verified, published in one step, and pruned only afterwards.

    <run>/checkpoints/000012/manifest.json   size and SHA-256 of every file, and the caller's meta data
                            /<part>/...      what the writers wrote
                     /latest.json            names the newest complete one (a hint: `latest()` never relies on it)

On a file system the publishing step is a rename. A bucket cannot rename: there it is the manifest, which is written last.
So a numbered folder with a valid manifest is a complete checkpoint, and everything else is not a checkpoint. Contents
are safetensors and JSON: nothing here unpickles.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cluster.staging import PARTS, Digests, Staging, check_written, damage, mib, storage_errors
from rlaif.config.difference import changed_options, show
from rlaif.errors import CheckpointError
from rlaif.io.storage import Location, flush, locate

if TYPE_CHECKING:
    from ray.train import Checkpoint

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT = "rlaif-checkpoint-1"
_STAGED, _RETIRED = ".tmp-", ".retired-"


@dataclass(frozen=True)
class CheckpointRef:
    """A complete checkpoint."""

    iteration: int
    location: Location
    meta: dict[str, Any]
    files: Digests
    passed_over: tuple[str, ...] = ()
    """Newer checkpoints that could not be used, each with the reason."""

    @property
    def nbytes(self) -> int:
        """Return the size of all files together, in bytes."""
        return sum(size for size, _ in self.files.values())

    def as_ray(self) -> Checkpoint:
        """Return the same directory for Ray Train's tools."""
        from ray.train import Checkpoint

        filesystem, path = self.location.on()
        return Checkpoint(path, filesystem=filesystem)


class Checkpoints:
    """The checkpoints of one stage of one run. One process at a time may save; the run's lock ensures that.

    `keep` is the number of newest checkpoints that a save leaves.
    """

    def __init__(self, root: str | Path | Location, keep: int = 2):
        self.root, self.keep = locate(root), keep

    def save(
        self,
        iteration: int,
        write: Callable[[Path], None],
        meta: Mapping[str, Any] | None = None,
        nbytes: int | None = None,
        protect: Collection[int] = (),
    ) -> CheckpointRef:
        """Save a checkpoint with one writer: `begin`, `write` into a folder, `commit`.

        If anything fails, nothing stays behind and older checkpoints are untouched.
        """
        staging = self.begin(iteration, nbytes)
        try:
            with staging.writer() as folder:
                write(folder)
            return self.commit(staging, meta, protect)
        except BaseException:  # also an interrupt: an unfinished checkpoint may be many GiB
            self.abort(staging)
            raise

    def begin(self, iteration: int, nbytes: int | None = None) -> Staging:
        """Start a checkpoint: delete what crashes left behind, and raise CheckpointError at once if the disk is too small.

        Args:
            nbytes: expected size in bytes; by default that of the newest checkpoint.
        """
        location = self._folder(iteration)
        with storage_errors(self.root, iteration):
            self._sweep()
            if location.exists():
                self._vacate(iteration)
            root = self.root.local
            if root:
                root.mkdir(parents=True, exist_ok=True)
                self._require_space(root, iteration, nbytes)
                aside = f"{_STAGED}{iteration:06d}-{uuid.uuid4().hex[:8]}"
                (root / aside).mkdir()
                location = self.root / aside
        return Staging(iteration, location)

    def commit(
        self, staging: Staging, meta: Mapping[str, Any] | None = None, protect: Collection[int] = ()
    ) -> CheckpointRef:
        """Verify what the writers declared by reading it back, publish it, and only then prune.

        `protect` names iterations that pruning must spare (the best one so far). Raises CheckpointError if a file is
        missing or differs from what its writer wrote; the caller then aborts.
        """
        iteration, meta = staging.iteration, dict(meta or {})
        with storage_errors(self.root, iteration):
            files = check_written(staging.location)
            # The declarations have served their purpose: the manifest has the same digests.
            (staging.location / PARTS).remove()
            entries = {name: {"size": size, "sha256": digest} for name, (size, digest) in files.items()}
            manifest = {"format": FORMAT, "iteration": iteration, "time": time.time(), "meta": meta, "files": entries}
            (staging.location / MANIFEST).write(json.dumps(manifest, indent=1).encode())
            final = self._folder(iteration)
            if staging.location.local and final.local and self.root.local:
                # The step that publishes. Without the flush of the parent folder a power cut could undo it.
                os.rename(staging.location.local, final.local)
                flush(self.root.local)
            # Older checkpoints are deleted only now that the new one is published: a crash never leaves fewer than one.
            self._point_to(iteration)
            self._prune({iteration, *protect})
        return CheckpointRef(iteration, final, meta, files)

    def abort(self, staging: Staging) -> None:
        """Remove an unfinished checkpoint; one that is already published stays."""
        if not (staging.location / MANIFEST).exists():
            staging.location.remove()

    def latest(self) -> CheckpointRef | None:
        """Return the newest complete checkpoint, every byte of it verified. Damaged newer ones are skipped and named."""
        passed_over: list[str] = []
        for iteration in reversed(self.iterations()):
            folder = self._folder(iteration)
            try:
                ref = self.at(iteration, tuple(passed_over))
            except CheckpointError as error:
                log.warning("checkpoint %s is not used: %s", folder, error.found)
                passed_over.append(f"{folder.name}: {error.found}")
                continue
            pointer = self._pointed_to()
            if pointer != iteration:
                log.warning("latest.json in %s names %s; the newest complete is %06d", self.root, pointer, iteration)
            return ref
        return None

    def newest(self) -> CheckpointRef | None:
        """Return the newest checkpoint by manifests and file sizes alone, which is quick: `latest` reads every byte."""
        for iteration in reversed(self.iterations()):
            if self._is_whole(iteration):
                return self._read(iteration)
        return None

    def at(self, iteration: int, passed_over: tuple[str, ...] = ()) -> CheckpointRef:
        """Return the checkpoint of one iteration, verified. Raises CheckpointError if it is missing or damaged."""
        ref = self._read(iteration, passed_over)
        _require_intact(ref.location, ref.files, ref)
        return ref

    def load(self, ref: CheckpointRef, parts: Collection[str] | None = None) -> Path:
        """Return a local folder with the checkpoint's verified files, all or those of the named parts.

        On a file system it is the checkpoint itself; from a bucket it is a copy that the caller removes after use.
        """
        files = ref.files
        if parts is not None:
            files = {name: digest for name, digest in files.items() if name.split("/", 1)[0] in parts}
        with storage_errors(ref.location, ref.iteration, doing="reading"):
            folder = ref.location.local
            if not folder:
                folder = Path(tempfile.mkdtemp(prefix="rlaif-checkpoint-"))
                for name in files:
                    (ref.location / name).copy_to(folder / name)
            _require_intact(Location(str(folder)), files, ref)
        return folder

    def rewind(self, iteration: int) -> None:
        """Retire every checkpoint beyond `iteration`; the next save deletes them.

        These are damaged ones, which a resume from `iteration` writes anew.
        """
        for number in self.iterations():
            if number > iteration:
                self._retire(number)
        if self._folder(iteration).exists():
            self._point_to(iteration)
        else:
            (self.root / "latest.json").remove()

    def iterations(self) -> list[int]:
        """Return the published checkpoints, oldest first. They may be damaged: `at` verifies one."""
        # By the manifest in a bucket, by the name on a file system; latest.json is not read.
        names = [name for name in self.root.children() if name.isdigit() and not self._is_unfinished(name)]
        return sorted(map(int, names))

    def _folder(self, iteration: int) -> Location:
        return self.root / f"{iteration:06d}"

    def _read(self, iteration: int, passed_over: tuple[str, ...] = ()) -> CheckpointRef:
        """Return a checkpoint as its manifest describes it, not verified. Raises CheckpointError for a bad manifest."""
        folder = self._folder(iteration)
        fix = "Use an older checkpoint."
        try:
            manifest = json.loads((folder / MANIFEST).read())
            files = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
            known = manifest["format"] == FORMAT and manifest["iteration"] == iteration
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"a manifest in {folder}", f"{type(error).__name__}: {error}", fix) from error
        if not known:
            other = f"format {manifest['format']}, iteration {manifest['iteration']}"
            raise CheckpointError(f"format {FORMAT}, iteration {iteration}", other, fix)
        for name in files:
            # A planted manifest could otherwise make a reader open, or a bucket's copy overwrite, any file.
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise CheckpointError(f"files inside {folder}", f"the manifest names {name}", fix)
        return CheckpointRef(iteration, folder, manifest["meta"], files, passed_over)

    def _vacate(self, iteration: int) -> None:
        """Retire a damaged checkpoint, so that a new one can take its place. Raises CheckpointError for an intact one."""
        try:
            self.at(iteration)
        except CheckpointError:
            return self._retire(iteration)
        raise CheckpointError(
            f"no checkpoint of iteration {iteration} yet",
            f"a complete one at {self._folder(iteration)}",
            "Resume the run, rewind it to an earlier checkpoint, or give the run another name.",
        )

    def _require_space(self, root: Path, iteration: int, nbytes: int | None) -> None:
        """Raise CheckpointError unless the disk of `root` has room for one more checkpoint."""
        if nbytes is None:
            nbytes = self._newest_size()
        free = shutil.disk_usage(root).free
        if free < nbytes:
            raise CheckpointError(
                f"{mib(nbytes)} free for checkpoint {iteration:06d} in {self.root}",
                f"{mib(free)}",
                f"Free space at {self.root}, lower `save.keep`, or set storage= to a larger disk; "
                "no checkpoint was touched.",
            )

    def _newest_size(self) -> int:
        """Return the bytes of the newest checkpoint, 0 if there is none."""
        iterations = self.iterations()
        if not iterations:
            return 0
        infos = self._folder(iterations[-1]).files().values()
        return sum(info.size for info in infos)

    def _point_to(self, iteration: int) -> None:
        """Write latest.json."""
        pointer = {"iteration": iteration, "path": self._folder(iteration).name}
        (self.root / "latest.json").write(json.dumps(pointer).encode())

    def _pointed_to(self) -> int | None:
        """Return the iteration that latest.json names, None if it cannot be read."""
        try:
            return int(json.loads((self.root / "latest.json").read())["iteration"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _prune(self, spared: set[int]) -> None:
        """Delete all checkpoints but the newest `keep` whole ones and the spared."""
        iterations = self.iterations()
        whole = [number for number in iterations if self._is_whole(number)]
        newest = whole[-self.keep :]
        for number in set(iterations) - set(newest) - spared:
            self._retire(number)
        self._sweep()

    def _is_whole(self, iteration: int) -> bool:
        """Check that the manifest is readable and that every file has its size.

        A full check would read every old checkpoint again, at every save.
        """
        try:
            ref = self._read(iteration)
        except CheckpointError:
            return False
        return damage(ref.location, ref.files, deep=False) is None

    def _retire(self, iteration: int) -> None:
        """Take one step after which the folder is no checkpoint any more, even if its deletion is interrupted."""
        folder = self._folder(iteration)
        path = folder.local
        if path:
            os.rename(path, path.with_name(f"{_RETIRED}{path.name}-{uuid.uuid4().hex[:8]}"))
        else:
            (folder / MANIFEST).remove()

    def _sweep(self) -> None:
        """Delete leftovers of saves and deletions that did not finish."""
        for name in self.root.children():
            # The run's lock lets one process save, so none of these is in use.
            hidden = name.startswith((_STAGED, _RETIRED))
            if hidden or (name.isdigit() and self._is_unfinished(name)):
                (self.root / name).remove()

    def _is_unfinished(self, name: str) -> bool:
        """Check whether a numbered folder is one of a save that has not finished.

        In a bucket a folder gets its manifest last. On a file system a folder has its name only when it is finished.
        """
        return not self.root.local and not (self.root / name / MANIFEST).exists()


def _require_intact(folder: Location, files: Digests, ref: CheckpointRef) -> None:
    """Raise CheckpointError if one of `files` in a folder is not as the checkpoint declares it."""
    problem = damage(folder, files)
    if problem:
        raise CheckpointError(f"a complete checkpoint at {ref.location}", problem, "Use an older checkpoint.")


def check_identity(meta: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a checkpoint of another model or data: every entry of `expected` must be in its meta data.

    The error names the options that differ.
    """
    stage = str(expected.get("stage", "run"))
    actual = {name: meta.get(name) for name in expected}
    changes = []
    for change in changed_options(actual, expected):
        option = _option(stage, change.option)
        changes.append(f"{option}: checkpoint {show(change.before)}, now {show(change.now)}")
    if changes:
        raise CheckpointError(
            "the model and the data (rows, captions, videos) that the checkpoint was made with",
            "; ".join(changes),
            "Set these as they were, or start a run of another name (name=).",
        )


def _option(stage: str, entry: str) -> str:
    """Return the option that an entry of an identity comes from. Models and files are compared by their contents."""
    entries = {
        "stage": "stage",
        "seed": "seed",
        "base": f"{stage}.init (its contents)",
        "policy": "ppo.policy (its contents)",
        "critic": "critic (ppo.advantage)",
        "critic.base": "the critic's base (ppo.critic_init, ppo.reward)",
        "pairs": "data.pairs (its rows)",
        "pairs_eval": "data.pairs_eval (its rows)",
    }
    if entry.startswith("critic.lora"):
        return f"the critic's {entry.removeprefix('critic.')} (ppo.critic_init, ppo.reward, ppo.lora)"
    return entries.get(entry, f"{stage}.{entry}")
