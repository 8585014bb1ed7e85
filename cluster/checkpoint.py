"""Checkpoints that a crash cannot spoil: written aside, verified, published by one step, pruned only afterwards.

    <run>/checkpoints/000012/manifest.json   size and SHA-256 of every file, and the caller's meta data
                            /<part>/...      what the writers wrote
                     /latest.json            names the newest complete one (a hint: `latest()` never relies on it)

On a file system the one publishing step is a rename; in a bucket, which cannot rename, it is the manifest, written
last. A numbered folder with a valid manifest is therefore complete, everything else is not a checkpoint. Contents are
safetensors and JSON: nothing here unpickles.
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
        return sum(size for size, _ in self.files.values())

    def as_ray(self) -> Checkpoint:
        """The same directory for Ray Train's tools."""
        from ray.train import Checkpoint

        filesystem, path = self.location.on()
        return Checkpoint(path, filesystem=filesystem)


class Checkpoints:
    """The checkpoints of one stage of one run. One process at a time may save (the run's lock sees to that)."""

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
        """`begin`, one writer, `commit`; whatever goes wrong, nothing stays behind and older checkpoints are untouched."""
        staging = self.begin(iteration, nbytes)
        try:
            with staging.writer() as folder:
                write(folder)
            return self.commit(staging, meta, protect)
        except BaseException:
            self.abort(staging)
            raise

    def begin(self, iteration: int, nbytes: int | None = None) -> Staging:
        """Start a checkpoint: sweep up what crashes left behind, and refuse at once when the disk is too small.

        Args:
            nbytes: expected size in bytes; by default that of the newest checkpoint.
        """
        final = self._folder(iteration)
        with storage_errors(self.root, iteration):
            self._sweep()
            if final.exists():
                self._vacate(iteration)
            if self.root.local:
                self.root.local.mkdir(parents=True, exist_ok=True)
                self._require_space(iteration, nbytes)
                final = self.root / f"{_STAGED}{iteration:06d}-{uuid.uuid4().hex[:8]}"
                final.local.mkdir()
        return Staging(iteration, final)

    def commit(
        self, staging: Staging, meta: Mapping[str, Any] | None = None, protect: Collection[int] = ()
    ) -> CheckpointRef:
        """Verify what the writers declared by reading it back, publish it, and only then prune.

        `protect` names iterations that pruning must spare (the best one so far). Raises CheckpointError, and the
        caller then aborts, when a file is missing or differs from what its writer wrote.
        """
        with storage_errors(self.root, staging.iteration):
            files = check_written(staging.location)
            (staging.location / PARTS).remove()
            manifest = {"format": FORMAT, "iteration": staging.iteration, "time": time.time(), "meta": dict(meta or {})}
            entries = {name: {"size": size, "sha256": digest} for name, (size, digest) in files.items()}
            (staging.location / MANIFEST).write(json.dumps(manifest | {"files": entries}, indent=1).encode())
            final = self._folder(staging.iteration)
            if staging.location.local:
                os.rename(staging.location.local, final.local)
                flush(self.root.local)
            self._point_to(staging.iteration)
            self._prune({staging.iteration, *protect})
        return CheckpointRef(staging.iteration, final, manifest["meta"], files)

    def abort(self, staging: Staging) -> None:
        """Remove a checkpoint in the making; one that is already published stays."""
        if not (staging.location / MANIFEST).exists():
            staging.location.remove()

    def latest(self) -> CheckpointRef | None:
        """The newest complete checkpoint, every byte of it verified; damaged newer ones are passed over and named."""
        passed_over: list[str] = []
        for iteration in reversed(self.iterations()):
            try:
                found = self.at(iteration, tuple(passed_over))
            except CheckpointError as error:
                log.warning("checkpoint %s is not used: %s", self._folder(iteration), error.found)
                passed_over.append(f"{self._folder(iteration).name}: {error.found}")
            else:
                if (named := self._pointed_to()) != iteration:
                    log.warning("latest.json in %s names %s; the newest complete is %06d", self.root, named, iteration)
                return found
        return None

    def newest(self) -> CheckpointRef | None:
        """Return the newest checkpoint by manifests and file sizes alone: in a moment, while `latest` reads every byte."""
        whole = (iteration for iteration in reversed(self.iterations()) if self._is_whole(iteration))
        return next(map(self._read, whole), None)

    def at(self, iteration: int, passed_over: tuple[str, ...] = ()) -> CheckpointRef:
        """The checkpoint of one iteration, verified. Raises CheckpointError where it is missing or damaged."""
        ref = self._read(iteration, passed_over)
        if problem := damage(ref.location, ref.files):
            raise CheckpointError(f"a complete checkpoint at {ref.location}", problem, "use an older checkpoint")
        return ref

    def load(self, ref: CheckpointRef, parts: Collection[str] | None = None) -> Path:
        """A local folder with the checkpoint's verified files, all or those of the named parts.

        It is the checkpoint itself on a file system; from a bucket it is a copy that the caller removes after use.
        """
        chosen = {n: d for n, d in ref.files.items() if parts is None or n.split("/", 1)[0] in parts}
        source = ref.location
        with storage_errors(source, ref.iteration, doing="reading"):
            if not source.local:
                copy = Location(tempfile.mkdtemp(prefix="rlaif-checkpoint-"))
                for name in chosen:
                    (source / name).copy_to((copy / name).local)
                source = copy
            if problem := damage(source, chosen):
                raise CheckpointError(f"a complete checkpoint at {ref.location}", problem, "use an older checkpoint")
        return source.local

    def rewind(self, iteration: int) -> None:
        """Retire every checkpoint beyond `iteration`: damaged ones, which a resume from it writes anew. The next save
        deletes them."""
        for newer in [n for n in self.iterations() if n > iteration]:
            self._retire(newer)
        if self._folder(iteration).exists():
            self._point_to(iteration)
        else:
            (self.root / "latest.json").remove()

    def iterations(self) -> list[int]:
        """Published checkpoints, oldest first; whether each is still intact is for `at` to say."""
        names = [name for name in self.root.children() if name.isdigit() and not self._is_unfinished(name)]
        return sorted(map(int, names))

    def _folder(self, iteration: int) -> Location:
        return self.root / f"{iteration:06d}"

    def _read(self, iteration: int, passed_over: tuple[str, ...] = ()) -> CheckpointRef:
        """A checkpoint as its manifest describes it, not verified."""
        folder = self._folder(iteration)
        change = "use an older checkpoint"
        try:
            manifest = json.loads((folder / MANIFEST).read())
            files = {name: (int(e["size"]), str(e["sha256"])) for name, e in manifest["files"].items()}
            known = manifest["format"] == FORMAT and manifest["iteration"] == iteration
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"a manifest in {folder}", f"{type(error).__name__}: {error}", change) from error
        if not known:
            found = f"format {manifest['format']}, iteration {manifest['iteration']}"
            raise CheckpointError(f"format {FORMAT}, iteration {iteration}", found, change)
        if outside := [n for n in files if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts]:
            raise CheckpointError(f"files inside {folder}", f"the manifest names {outside[0]}", change)
        return CheckpointRef(iteration, folder, manifest["meta"], files, passed_over)

    def _vacate(self, iteration: int) -> None:
        """Make room for a checkpoint whose folder exists: a damaged one is retired, a good one is never replaced."""
        try:
            self.at(iteration)
        except CheckpointError:
            return self._retire(iteration)
        raise CheckpointError(
            f"no checkpoint of iteration {iteration} yet",
            f"a complete one at {self._folder(iteration)}",
            "resume the run, rewind it to an earlier checkpoint, or give the run another name",
        )

    def _require_space(self, iteration: int, nbytes: int | None) -> None:
        if nbytes is None:
            done = self.iterations()[-1:]
            nbytes = sum(info.size for newest in done for info in self._folder(newest).files().values())
        free = shutil.disk_usage(self.root.local).free
        if free < nbytes:
            raise CheckpointError(
                f"{mib(nbytes)} free for checkpoint {iteration:06d} in {self.root}",
                f"{mib(free)}",
                f"free space at {self.root}, lower `save.keep`, or set storage= to a larger disk; "
                "no checkpoint was touched",
            )

    def _point_to(self, iteration: int) -> None:
        pointer = {"iteration": iteration, "path": self._folder(iteration).name}
        (self.root / "latest.json").write(json.dumps(pointer).encode())

    def _pointed_to(self) -> int | None:
        try:
            return int(json.loads((self.root / "latest.json").read())["iteration"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _prune(self, spared: set[int]) -> None:
        """Drop all but the newest `keep` whole ones and the spared; the newest was verified a moment ago."""
        whole = [n for n in self.iterations() if self._is_whole(n)]
        for iteration in set(self.iterations()) - set(whole[-self.keep :]) - spared:
            self._retire(iteration)
        self._sweep()

    def _is_whole(self, iteration: int) -> bool:
        """Manifest readable, every file there with its size (a full check would read every old checkpoint again)."""
        try:
            ref = self._read(iteration)
        except CheckpointError:
            return False
        return damage(ref.location, ref.files, deep=False) is None

    def _retire(self, iteration: int) -> None:
        """One step after which the folder is no checkpoint any more, however its deletion ends."""
        folder = self._folder(iteration)
        if folder.local:
            os.rename(folder.local, (self.root / f"{_RETIRED}{folder.name}-{uuid.uuid4().hex[:8]}").local)
        else:
            (folder / MANIFEST).remove()

    def _sweep(self) -> None:
        """Delete leftovers of saves and deletions that did not finish."""
        for name in self.root.children():
            hidden = name.startswith((_STAGED, _RETIRED))
            if hidden or (name.isdigit() and self._is_unfinished(name)):
                (self.root / name).remove()

    def _is_unfinished(self, name: str) -> bool:
        """In a bucket a folder gets its manifest last; on a file system it has its name only when it is finished."""
        return not self.root.local and not (self.root / name / MANIFEST).exists()


def check_identity(meta: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a checkpoint of another model or data: every entry of `expected` must be in its meta data.

    The error names the options that differ.
    """
    stage = str(expected.get("stage", "run"))
    apart = changed_options({name: meta.get(name) for name in expected}, expected)
    if apart:
        raise CheckpointError(
            "the model and the data (rows, captions, videos) that the checkpoint was made with",
            "; ".join(f"{_option(stage, c.option)}: checkpoint {show(c.before)}, now {show(c.now)}" for c in apart),
            "Set these as they were, or start a run of another name (name=)",
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
