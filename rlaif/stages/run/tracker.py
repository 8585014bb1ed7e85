"""What a stage reports while it runs: metrics.jsonl, a progress bar and, if configured, a mirror in W&B."""

from __future__ import annotations

import logging
import math
import netrc
import os
import time
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from rlaif.config.schema import Config
from rlaif.io.progress import Progress
from rlaif.io.rundir import WANDB_IDS, RunDir

log = logging.getLogger(__name__)

_SYNC_EVERY_S = 30.0
"""Seconds between two copies of metrics.jsonl to a bucket, which always copy the whole file."""


class Tracker:
    """Logs one stage. `total` and `done` are iterations: of the whole stage, and already done when it resumes."""

    def __init__(self, run_dir: RunDir, stage: str, config: Config, total: int, done: int = 0):
        self.run_dir, self.stage = run_dir, stage
        run_dir.prepare()
        run_dir.drop_torn_line()
        self._bar = Progress(total, f"{config.name} {stage}", done)
        self._mirror = Mirror(run_dir, stage, config) if config.logging.wandb == "auto" else None
        self._synced = time.monotonic()

    def log(self, iteration: int, values: Mapping[str, float], note: str = "") -> None:
        """Append one row. Keys are `<group>/<metric>`; NaN and infinities become null and are counted.

        Args:
            iteration: iterations done, so the first one logs 1.
            values: the metrics.
            note: a few words for the progress bar.

        Raises:
            ValueError: for a key of another form.
        """
        wrong = [key for key in values if "/" not in key.strip("/")]
        if wrong:
            raise ValueError(f"metrics are named <group>/<metric>; found {wrong}")
        numbers = {key: _number(value) for key, value in values.items()}
        missing = sum(number is None for number in numbers.values())
        if missing:
            numbers["tracking/nonfinite"] = missing
        row = {"stage": self.stage, "iteration": iteration, "time": time.time(), **numbers}
        self.run_dir.append_metrics(row)
        self._bar.to(iteration, note)
        if self._mirror:
            self._mirror.log(iteration, numbers)
        if time.monotonic() - self._synced > _SYNC_EVERY_S:
            self.run_dir.sync()
            self._synced = time.monotonic()

    def close(self, failed: bool = False) -> None:
        """End the progress bar and the W&B run, and copy metrics.jsonl to a bucket."""
        self._bar.close()
        self.run_dir.sync()
        if self._mirror:
            self._mirror.finish(failed)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close(failed=kind is not None)


class Mirror:
    """A copy of the metrics in W&B. It never prompts and never stops a run: after its first failure it warns and is off."""

    def __init__(self, run_dir: RunDir, stage: str, config: Config):
        self._run: Any = None
        self._attempt("start", self._start, run_dir, stage, config)

    def log(self, iteration: int, numbers: Mapping[str, float | None]) -> None:
        """Send the finite numbers of one iteration."""
        row: dict[str, float] = {"iteration": iteration}
        for key, number in numbers.items():
            if number is not None:
                row[key] = number
        self._attempt("log", lambda: self._run.log(row))

    def finish(self, failed: bool) -> None:
        """End the W&B run as successful or failed."""
        self._attempt("finish", lambda: self._run.finish(exit_code=int(failed)))
        self._run = None

    def _start(self, run_dir: RunDir, stage: str, config: Config) -> None:
        # Importing it takes half a second, and many runs have it off.
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=60,
            finish_timeout=60,
            finish_timeout_raises=True,
        )
        self._run = wandb.init(
            project=config.logging.project,
            group=config.name,
            name=f"{config.name}-{stage}",
            job_type=stage,
            config=config.model_dump(mode="json"),
            dir=run_dir.path,
            id=_run_id(run_dir, stage),
            resume="allow",
            mode=wandb_mode(),
            settings=settings,
        )
        # W&B rejects steps below the last one. A resumed run logs some again, so iterations are an axis, not W&B's step.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def _attempt(self, what: str, action: Any, *args: Any) -> None:
        if self._run is None and what != "start":
            return
        try:
            action(*args)
        except Exception as error:
            # A service, a network or its client may raise anything, and none of it may stop the training.
            log.warning("W&B could not %s and is off from here (%s: %s)", what, type(error).__name__, error)
            self._run = None


def wandb_mode() -> str:
    """Return the user's `WANDB_MODE`, else `online` if a login is stored for the server, else `offline`."""
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode
    return "online" if os.environ.get("WANDB_API_KEY") or _in_netrc() else "offline"


def _in_netrc() -> bool:
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(run_dir: RunDir, stage: str) -> str:
    """Return the W&B id of a stage: the same one after a resume, and another one for a new start."""
    file = run_dir.of_stage(stage, WANDB_IDS)
    ids = run_dir.read_json(file) or {}
    if stage not in ids:
        ids[stage] = uuid.uuid4().hex[:8]
        run_dir.write_json(file, ids)
    return ids[stage]


def _number(value: Any) -> float | int | None:
    """Return a plain number, or None if it is not finite. Raises TypeError or ValueError for what is no number."""
    if isinstance(value, (bool, int)):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
