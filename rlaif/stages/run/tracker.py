"""What a stage reports while it runs: metrics.jsonl, a progress bar and, where wanted, a mirror in W&B."""

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
            note: a few words for the progress bar.
        """
        if wrong := [key for key in values if "/" not in key.strip("/")]:
            raise ValueError(f"metrics are named <group>/<metric>; found {wrong}")
        numbers = {key: _number(value) for key, value in values.items()}
        if missing := sum(number is None for number in numbers.values()):
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
        self._bar.close()
        self.run_dir.sync()
        if self._mirror:
            self._mirror.finish(failed)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close(failed=kind is not None)


class Mirror:
    """A copy of the metrics in W&B. It never asks and never stops a run: its first failure is a warning and its end."""

    def __init__(self, run_dir: RunDir, stage: str, config: Config):
        self._run: Any = None
        self._attempt("start", self._start, run_dir, stage, config)

    def log(self, iteration: int, numbers: Mapping[str, float | None]) -> None:
        present = {key: number for key, number in numbers.items() if number is not None}
        self._attempt("log", lambda: self._run.log({"iteration": iteration, **present}))

    def finish(self, failed: bool) -> None:
        self._attempt("finish", lambda: self._run.finish(exit_code=int(failed)))
        self._run = None

    def _start(self, run_dir: RunDir, stage: str, config: Config) -> None:
        import wandb  # half a second, and not everybody has it on

        os.environ.setdefault("WANDB_SILENT", "true")
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
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=60, finish_timeout=60, finish_timeout_raises=True
            ),
        )
        # W&B refuses steps that lie behind; a resumed run logs some again, so iterations are an axis, not its step.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def _attempt(self, what: str, action: Any, *args: Any) -> None:
        if self._run is None and what != "start":
            return
        try:
            action(*args)
        except Exception as error:  # whatever a service, a network or its client does, training goes on
            log.warning("W&B could not %s and is off from here (%s: %s)", what, type(error).__name__, error)
            self._run = None


def wandb_mode() -> str:
    """The user's `WANDB_MODE`, else online where a login is stored for the server, else offline."""
    if mode := os.environ.get("WANDB_MODE"):
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
    """One W&B run per stage of a run, the same one after a resume and another one for a new start."""
    file = run_dir.of_stage(stage, WANDB_IDS)
    ids = run_dir.read_json(file) or {}
    if stage not in ids:
        ids[stage] = uuid.uuid4().hex[:8]
        run_dir.write_json(file, ids)
    return ids[stage]


def _number(value: Any) -> float | int | None:
    """A plain number; None for one that is not finite. Raises TypeError or ValueError for what is no number."""
    if isinstance(value, (bool, int)):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
