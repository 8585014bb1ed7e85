"""The run directory `<storage>/<name>/`, with all files of a run.

    config.yaml, metrics.jsonl, samples/<iteration>.jsonl, eval/<name>.json
    logs/<command>.log               what libraries and actors print; only here, also with a URI for `storage`
    checkpoints/, export/, configs/  of PPO; each other stage has its own below `<stage>/`
    restart-<stage>/, aside/         of a stage that is started over (rlaif/io/restart.py)

`RunDir.path` is always a local folder. With a URI for `storage` it is this node's mirror: every small file is written to
both, except metrics.jsonl, which grows by the line and is copied as a whole by `sync()`. A stage calls `sync()` before it
publishes a checkpoint: then the bucket has every row up to that checkpoint, and a resume needs no others.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout

from rlaif.errors import ConfigError
from rlaif.io.storage import Location, cache_folder, locate, replace_file, writing

log = logging.getLogger(__name__)

MAIN_STAGE = "ppo"
"""The stage whose checkpoints, samples and export are at the top of the run directory."""

WANDB_IDS = "wandb_id.json"
"""The W&B run of each stage."""


class RunDir:
    """Paths and files of one run."""

    def __init__(self, storage: str | Path, name: str):
        self.location: Location = locate(storage) / name
        self.name = name
        # Part of the mirror's name: runs of one name may be in several buckets.
        mirror = hashlib.sha256(str(self.location).encode()).hexdigest()[:12]
        self.path: Path = self.location.local or cache_folder() / "runs" / f"{name}-{mirror}"
        self.restarting: set[str] = set()
        """Stages that have been started over and have no checkpoint yet: they write to `restart_folder`."""

    @property
    def metrics(self) -> Path:
        """Return the local metrics.jsonl."""
        return self.path / "metrics.jsonl"

    def stage(self, stage: str) -> Location:
        """Return the folder of a stage's checkpoints and export."""
        return self.location if stage == MAIN_STAGE else self.location / stage

    def stage_file(self, stage: str, name: str) -> str:
        """Return the path, relative to the run, of a file in the stage's folder."""
        return name if stage == MAIN_STAGE else f"{stage}/{name}"

    def checkpoints(self, stage: str) -> Location:
        """Return the folder of a stage's checkpoints."""
        return self.stage(stage) / "checkpoints"

    def export(self, stage: str) -> Location:
        """Return the folder of a stage's export."""
        return self.stage(stage) / "export"

    def restart_folder(self, stage: str) -> str:
        """Return the name of the folder of a new start of `stage` that has no checkpoint yet."""
        return f"restart-{stage}"

    def own_files(self, stage: str) -> tuple[str, ...]:
        """Return what a stage writes at the top of the run directory."""
        return ("samples", f"eval/{stage}.json") if stage == MAIN_STAGE else ()

    def of_stage(self, stage: str, relative: str) -> str:
        """Return the path at which a stage writes a file, relative to the run.

        It is in the folder of the stage's new start, if there is one.
        """
        if stage in self.restarting:
            return f"{self.restart_folder(stage)}/{relative}"
        return relative

    def resolve(self, text: str) -> str:
        """Replace `{run}` in an option by this run's path or URI."""
        if text.startswith("{run}"):
            return str(self.location / text.removeprefix("{run}"))
        return text.replace("{run}", str(self.location))

    def prepare(self) -> None:
        """Create the folder; with a bucket, also copy its metrics (the run may have started on another machine)."""
        with writing(Location(str(self.path)), "the run directory"):
            self.path.mkdir(parents=True, exist_ok=True)
        remote = self.location / "metrics.jsonl"
        if not remote.local and remote.exists():
            replace_file(self.metrics, remote.read())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock this run's directory. Raises ConfigError if another process of this machine (or file server) has the lock.

        The kernel drops the lock with the process, so a crash leaves nothing to clean up. On a file system without locks
        it warns and continues.
        """
        path = self.path / ".lock"
        with writing(Location(str(self.path)), "the run directory"):
            self.path.mkdir(parents=True, exist_ok=True)
            path.touch()
        # filelock's substitute for a file system without flock is a marker file, which a killed process leaves behind.
        lock = FileLock(path, fallback_to_soft=False)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise _already_alive(self.location, path.read_text() or "another process") from error
        except OSError as error:
            log.warning("%s: no file locks there (%s), so nothing stops a second run of this name", self.path, error)
        try:
            # filelock never writes to the file or truncates it, so its text is for the message of a second process.
            with writing(Location(str(self.path)), "the run's lock"):
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            yield
        finally:
            lock.release()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration, as plain values."""
        self._write("config.yaml", _yaml(config))

    def keep_config(self, stage: str, iteration: int, config: Mapping[str, Any]) -> None:
        """Write config.yaml, and keep a copy as the configuration with which a stage continues from an iteration.

        `configs/<iteration>.yaml` of the stage is the configuration in effect from there to the next such file. Those
        beyond `iteration` belong to work that a resume has cut back, and are removed.
        """
        restarting = stage in self.restarting
        folder = self.of_stage(stage, "configs") if restarting else self.stage_file(stage, "configs")
        self._remove_later(folder, ".yaml", iteration)
        self._write(f"{folder}/{iteration:06d}.yaml", _yaml(config))
        self.write_config(config)

    def write_samples(self, iteration: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one line per sample of an iteration; this replaces the file as a whole."""
        relative = self.of_stage(MAIN_STAGE, _samples(iteration))
        lines = [f"{dumps(row)}\n" for row in rows]
        self._write(relative, "".join(lines).encode())

    def write_eval(self, name: str, result: Mapping[str, Any]) -> None:
        """Write the result of an evaluation, `eval/<name>.json`."""
        self._write(self.of_stage(name, f"eval/{name}.json"), (dumps(result, indent=1) + "\n").encode())

    def read_eval(self, name: str) -> Any | None:
        """Return what `write_eval` wrote, or None."""
        return self.read_json(self.of_stage(name, f"eval/{name}.json"))

    def write_text(self, relative: str, text: str) -> None:
        """Write a file, in UTF-8, at a path relative to the run."""
        self._write(relative, text.encode())

    def write_json(self, relative: str, record: Any) -> None:
        """Write a record at a path relative to the run."""
        self._write(relative, (dumps(record) + "\n").encode())

    def read_json(self, relative: str) -> Any | None:
        """Return a record written by `write_json` (by this or an earlier process), None if there is none."""
        source = self.location / relative
        return json.loads(source.read()) if source.exists() else None

    def metrics_of(self, stage: str) -> Path:
        """Return the file to which a stage's rows are written now."""
        return self.path / self.of_stage(stage, "metrics.jsonl")

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line with one write call, so that readers and other writers never see part of a line."""
        line, path = (dumps(row) + "\n").encode(), self.metrics_of(row["stage"])
        with writing(Location(str(path)), "another row of metrics"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab", buffering=0) as file:
                written = file.write(line)
                # On a disk that is almost full a write takes a part of the line and raises nothing.
                if written < len(line):
                    file.truncate(file.tell() - written)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read_metrics(self, stage: str) -> list[dict[str, Any]]:
        """Return the stage's rows of metrics.jsonl so far, oldest first."""
        rows = [json.loads(line) for line in self.metrics_of(stage).read_text().splitlines()]
        return [row for row in rows if row["stage"] == stage]

    def sync(self) -> None:
        """Copy metrics.jsonl to the bucket; do nothing on a file system."""
        if self.location.local:
            return
        # A bucket cannot append, so the file is copied as a whole.
        files = {"metrics.jsonl"}
        for stage in self.restarting:
            files.add(self.of_stage(stage, "metrics.jsonl"))
        for relative in files:
            if (self.path / relative).exists():
                (self.location / relative).write((self.path / relative).read_bytes())

    def drop_torn_line(self) -> None:
        """Remove a last line that a crash cut short, so that the next one starts on its own line."""
        data = self.metrics.read_bytes() if self.metrics.exists() else b""
        if data and not data.endswith(b"\n"):
            log.warning("%s: dropped a last line that was cut short", self.metrics)
            replace_file(self.metrics, data[: data.rfind(b"\n") + 1])

    def cut_back(self, stage: str, iteration: int) -> None:
        """Remove what a stage logged beyond an iteration: a resume from there writes it again.

        Metrics rows of other stages stay. Lines that are not JSON (a power cut may leave some) are dropped and counted.
        """
        self.prepare()
        if stage in self.restarting:
            return  # the folder of a new start has only its own rows
        if self.metrics.exists():
            self._cut_metrics_back(stage, iteration)
            self.sync()
        if stage == MAIN_STAGE:
            self._remove_later("samples", ".jsonl", iteration)

    def _cut_metrics_back(self, stage: str, iteration: int) -> None:
        """Remove a stage's rows beyond an iteration, and lines that are not JSON, from metrics.jsonl."""
        remaining, broken = [], 0
        for line in self.metrics.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                broken += 1
                continue
            if row.get("stage") != stage or row["iteration"] <= iteration:
                remaining.append(line + b"\n")
        if broken:
            log.warning("%s: dropped %d lines that are not JSON", self.metrics, broken)
        replace_file(self.metrics, b"".join(remaining))

    def _remove_later(self, folder: str, suffix: str, iteration: int) -> None:
        """Remove the files `<number><suffix>` of a folder whose number is beyond an iteration, also from the mirror."""
        for root in {Location(str(self.path)), self.location}:
            for name in (root / folder).children():
                number = name.removesuffix(suffix)
                if name.endswith(suffix) and number.isdigit() and int(number) > iteration:
                    (root / folder / name).remove()

    def _write(self, relative: str, data: bytes) -> None:
        """Replace a file of the run, and with a bucket also its mirror."""
        with writing(self.location / relative, relative):
            replace_file(self.path / relative, data)
            if not self.location.local:
                (self.location / relative).write(data)


def _yaml(config: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).encode()


def _samples(iteration: int) -> str:
    return f"samples/{iteration:06d}.jsonl"


def _already_alive(location: Location, holder: str) -> ConfigError:
    return ConfigError(
        f"no other process working on the run at {location}",
        holder,
        "Wait for it or stop it, or give this run another `name`.",
    )


def dumps(value: Any, indent: int | None = None) -> str:
    """Return JSON that every reader accepts: numpy values become plain ones, NaN and infinities null."""
    # Python would write NaN and Infinity, which JSON does not have and most readers refuse.
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
