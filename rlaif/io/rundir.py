"""The run directory `<storage>/<name>/`: what a run leaves behind.

    config.yaml, metrics.jsonl, samples/<iteration>.jsonl, eval/<name>.json
    logs/<command>.log               what libraries and actors print; only here, also with a URI for `storage`
    checkpoints/, export/, configs/  of PPO; each other stage keeps its own below `<stage>/`
    restart-<stage>/, aside/         of a stage that is started over (rlaif/io/restart.py)

`RunDir.path` is always a local folder. With a URI for `storage` it is this node's mirror: every small file is written to
both, except that metrics.jsonl, which grows by the line, is copied as a whole by `sync()`. Whoever calls `sync()` before
it publishes a checkpoint finds every row up to that checkpoint in the bucket, which is all a resume keeps.
"""

from __future__ import annotations

import errno
import fcntl
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
        mirror = hashlib.sha256(str(self.location).encode()).hexdigest()[:12]
        self.path: Path = self.location.local or cache_folder() / "runs" / f"{name}-{mirror}"
        self.restarting: set[str] = set()
        """Stages that have been started over and have no checkpoint yet: what they write goes to `restart_folder`."""

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def stage(self, stage: str) -> Location:
        """Folder of a stage's checkpoints and export."""
        return self.location if stage == MAIN_STAGE else self.location / stage

    def stage_file(self, stage: str, name: str) -> str:
        """Path, relative to the run, of a file in the stage's folder."""
        return name if stage == MAIN_STAGE else f"{stage}/{name}"

    def checkpoints(self, stage: str) -> Location:
        return self.stage(stage) / "checkpoints"

    def export(self, stage: str) -> Location:
        """Return the folder of a stage's export."""
        return self.stage(stage) / "export"

    def restart_folder(self, stage: str) -> str:
        """Name of the folder of a new start of `stage` that has no checkpoint yet."""
        return f"restart-{stage}"

    def own_files(self, stage: str) -> tuple[str, ...]:
        """What a stage writes at the top of the run directory."""
        return ("samples", f"eval/{stage}.json") if stage == MAIN_STAGE else ()

    def of_stage(self, stage: str, relative: str) -> str:
        """Path of what a stage writes there, relative to the run: in the folder of its new start if it has one."""
        return f"{self.restart_folder(stage)}/{relative}" if stage in self.restarting else relative

    def resolve(self, text: str) -> str:
        """Replace `{run}` in an option by this run's path or URI."""
        if text.startswith("{run}"):
            return str(self.location / text.removeprefix("{run}"))
        return text.replace("{run}", str(self.location))

    def prepare(self) -> None:
        """Create the folder; with a bucket, also take over its metrics (the run may have started on another machine)."""
        with writing(Location(str(self.path)), "the run directory"):
            self.path.mkdir(parents=True, exist_ok=True)
        remote = self.location / "metrics.jsonl"
        if not remote.local and remote.exists():
            replace_file(self.metrics, remote.read())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this run's directory; raises ConfigError when another process of this machine (or file server) does.

        The kernel drops the lock with the process, so a crash leaves nothing to clean up.
        """
        with writing(Location(str(self.path)), "the run directory"):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "a+")
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise _already_alive(self.location, file.read() or "another process") from error
            except OSError as error:
                log.warning(
                    "%s: no file locks there (%s), so nothing stops a second run of this name", self.path, error
                )
            with writing(Location(str(self.path)), "the run's lock"):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            yield

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration, as plain values."""
        self._write("config.yaml", _yaml(config))

    def keep_config(self, stage: str, iteration: int, config: Mapping[str, Any]) -> None:
        """Write config.yaml, and keep it as the one by which a stage goes on from an iteration.

        `configs/<iteration>.yaml` of the stage is the configuration in effect from there to the next such file. Those
        beyond `iteration` belong to work that a resume has cut back, and are removed.
        """
        restarting = stage in self.restarting
        folder = self.of_stage(stage, "configs") if restarting else self.stage_file(stage, "configs")
        for root in {Location(str(self.path)), self.location}:
            for name in (root / folder).children():
                if name.removesuffix(".yaml").isdigit() and int(name.removesuffix(".yaml")) > iteration:
                    (root / folder / name).remove()
        self._write(f"{folder}/{iteration:06d}.yaml", _yaml(config))
        self.write_config(config)

    def write_samples(self, iteration: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """One line per sample of an iteration; replaces the file as a whole."""
        relative = self.of_stage(MAIN_STAGE, _samples(iteration))
        self._write(relative, "".join(dumps(row) + "\n" for row in rows).encode())

    def write_eval(self, name: str, result: Mapping[str, Any]) -> None:
        self._write(self.of_stage(name, f"eval/{name}.json"), (dumps(result, indent=1) + "\n").encode())

    def read_eval(self, name: str) -> Any | None:
        """Return what `write_eval` wrote, or None."""
        return self.read_json(self.of_stage(name, f"eval/{name}.json"))

    def write_text(self, relative: str, text: str) -> None:
        self._write(relative, text.encode())

    def write_json(self, relative: str, record: Any) -> None:
        self._write(relative, (dumps(record) + "\n").encode())

    def read_json(self, relative: str) -> Any | None:
        """A record written by `write_json` (by this or an earlier process); None where there is none."""
        source = self.location / relative
        return json.loads(source.read()) if source.exists() else None

    def metrics_of(self, stage: str) -> Path:
        """The file that holds a stage's rows at the moment."""
        return self.path / self.of_stage(stage, "metrics.jsonl")

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line with one write call, so that readers and other writers never meet part of a line."""
        line, path = (dumps(row) + "\n").encode(), self.metrics_of(row["stage"])
        with writing(Location(str(path)), "another row of metrics"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab", buffering=0) as file:
                # on a disk that is almost full a write takes a part of the line and raises nothing
                if (written := file.write(line)) < len(line):
                    file.truncate(file.tell() - written)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read_metrics(self, stage: str) -> list[dict[str, Any]]:
        """The stage's rows of metrics.jsonl so far, oldest first."""
        rows = [json.loads(line) for line in self.metrics_of(stage).read_text().splitlines()]
        return [row for row in rows if row["stage"] == stage]

    def sync(self) -> None:
        """Copy metrics.jsonl to the bucket; nothing to do on a file system."""
        if self.location.local:
            return
        for relative in {"metrics.jsonl", *(self.of_stage(stage, "metrics.jsonl") for stage in self.restarting)}:
            if (self.path / relative).exists():
                (self.location / relative).write((self.path / relative).read_bytes())

    def drop_torn_line(self) -> None:
        """Remove a last line that a crash cut short, so that the next one starts on its own line."""
        if self.metrics.exists() and not (data := self.metrics.read_bytes()).endswith(b"\n") and data:
            log.warning("%s: dropped a last line that was cut short", self.metrics)
            replace_file(self.metrics, data[: data.rfind(b"\n") + 1])

    def cut_back(self, stage: str, iteration: int) -> None:
        """Forget what a stage logged beyond an iteration: a resume from there writes it again.

        Metrics rows of other stages stay. Lines that are not JSON (a power cut may leave some) are dropped and counted.
        """
        self.prepare()
        if stage in self.restarting:
            return  # its folder holds rows of the new start alone
        if self.metrics.exists():
            kept, broken = [], 0
            for line in self.metrics.read_bytes().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    broken += 1
                    continue
                if row.get("stage") != stage or row["iteration"] <= iteration:
                    kept.append(line + b"\n")
            if broken:
                log.warning("%s: dropped %d lines that are not JSON", self.metrics, broken)
            replace_file(self.metrics, b"".join(kept))
            self.sync()
        if stage == MAIN_STAGE:
            for folder in {Location(str(self.path)), self.location}:
                for name in (folder / "samples").children():
                    if name.endswith(".jsonl") and int(name.removesuffix(".jsonl")) > iteration:
                        (folder / "samples" / name).remove()

    def _write(self, relative: str, data: bytes) -> None:
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
        "wait for it or stop it, or give this run another `name`",
    )


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: numpy values become plain ones, NaN and infinities null."""
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
