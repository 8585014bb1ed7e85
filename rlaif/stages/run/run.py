"""An open run: its directory, its cluster session and its actors, shared by the stages that work on it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from ray.exceptions import RayError

from actors.engine import SCRATCH
from actors.weights import ADAPTERS
from cluster.checkpoint import CheckpointRef, Checkpoints, check_identity
from cluster.health import head_lost
from cluster.session import Session, in_ray_job, start_session
from rlaif.config.difference import Change, decides_order, is_fixed, resumed_with, show
from rlaif.config.schema import Config
from rlaif.errors import CheckpointError, ConfigError, RlaifError
from rlaif.io.restart import ASIDE, EXPORTED, Restart
from rlaif.io.rundir import RunDir
from rlaif.io.tempdirs import sweep
from rlaif.io.terminal import phase
from rlaif.stages.run.stopping import Interrupted, Stopper
from rlaif.stages.run.topology import Topology
from rlaif.stages.run.tracker import Tracker

log = logging.getLogger(__name__)

Start = Literal["new", "resume", "fresh"]
"""How a stage begins: refuse if checkpoints exist, continue from the newest, or start over."""

GRACE_S, GRACE_IN_JOB_S = 20.0, 1.0
"""Defaults of `cluster.grace_s`: schedulers give 30 seconds between SIGTERM and SIGKILL, `ray job stop` gives 3."""


@dataclass
class Run:
    config: Config
    directory: RunDir
    session: Session
    topology: Topology
    within: RunDir | None = None
    """The directory of the whole, where this is one part of a study."""
    stopper: Stopper = field(default_factory=lambda: Stopper(GRACE_S))
    places: dict[str, str] = field(default_factory=dict)
    """Where each row that was read is (`FILE line N`), by its id: what turns out about it later is said with its place."""

    def placed(self, ids: Iterable[str]) -> list[str]:
        """Return ids, each with the place of its row if that is known."""
        return [f"{name!r} ({self.places[name]})" if name in self.places else repr(name) for name in ids]

    @property
    def shared(self) -> RunDir:
        """Return the directory shared by all parts of a study (for example the judge's spending record)."""
        return self.within or self.directory

    def checkpoints(self, stage: str, keep: int) -> Checkpoints:
        return Checkpoints(self.directory.checkpoints(stage), keep)

    def tracker(self, stage: str, total: int, done: int = 0) -> Tracker:
        """Metrics of a stage that has `done` iterations behind it; whatever was logged beyond them is cut back."""
        self.directory.cut_back(stage, done)
        return Tracker(self.directory, stage, self.config, total, done)

    def starting_point(
        self, stage: str, checkpoints: Checkpoints, start: Start, identity: dict
    ) -> CheckpointRef | None:
        """The checkpoint to continue from, or None for step 0. Work that is already there is never overwritten unasked.

        Raises ConfigError if a stage has checkpoints and the user asked for neither `--resume` nor `--fresh`,
        CheckpointError if they belong to another model. Both come before any model is loaded.
        """
        finish_restart(self.directory, stage)
        latest = checkpoints.latest()
        if start == "fresh":
            self._start_over(stage, checkpoints)
            latest = None
        elif latest is None and checkpoints.iterations():
            raise CheckpointError(
                f"a complete checkpoint of stage {stage}",
                f"only damaged ones in {checkpoints.root}",
                "Repair the storage, or add --fresh to start over",
            )
        elif latest is not None and start == "new":
            raise already_begun(self.config, stage, latest)
        elif latest is not None:
            changes = changes_since(self.config, self.directory, stage, latest)
            refuse_fixed(stage, changes)
            check_identity(latest.meta["identity"], identity)
            report_changes(stage, latest.iteration, changes)
        elif start == "resume":
            log.warning("%s: nothing to resume in %s; starting from the beginning", stage, checkpoints.root)
        iteration = latest.iteration if latest else 0
        self.directory.keep_config(stage, iteration, self.config.model_dump(mode="json"))
        return latest

    def saved(self, stage: str, checkpoints: Checkpoints) -> None:
        """A checkpoint has been committed: if it is the first of a new start, the earlier results move aside now."""
        if stage in self.directory.restarting:
            aside = Restart(self.directory, stage).promote()
            checkpoints.root = self.directory.checkpoints(stage)
            log.warning("the earlier results of stage %s are in %s now; nothing removes them", stage, aside)

    def record(self) -> dict:
        """What a checkpoint remembers of the configuration, for a later resume to compare with."""
        return {"config": self.config.model_dump(mode="json"), "directory": str(self.directory.location)}

    def nothing_left(self, stage: str, newest: CheckpointRef | None, total: int, option: str) -> bool:
        """Whether a resumed stage has trained all it is asked for and exported it; says so, and what to type."""
        exported = self.directory.read_json(self.directory.stage_file(stage, EXPORTED))
        if newest is None or newest.iteration < total or exported != {"iteration": newest.iteration}:
            return False
        log.warning(
            "%s: %d of %d steps are done and exported to %s: nothing remains to be trained. "
            "To train on, type --resume %s=N with N above %d; to start over, type --fresh",
            stage,
            newest.iteration,
            total,
            self.directory.export(stage),
            option,
            newest.iteration,
        )
        return True

    def exported(self, stage: str, iteration: int) -> None:
        """Everything that follows the last step is done."""
        self.directory.write_json(self.directory.stage_file(stage, EXPORTED), {"iteration": iteration})

    def _start_over(self, stage: str, checkpoints: Checkpoints) -> None:
        if not checkpoints.iterations() and not self.directory.export(stage).exists():
            return
        restart = Restart(self.directory, stage)
        restart.begin()
        checkpoints.root = restart.checkpoints
        log.warning(
            "%s starts over. Its earlier results stay in %s until the first new checkpoint, then they move to a folder "
            "in %s; until then --resume would go on with them",
            stage,
            self.directory.stage(stage),
            self.directory.location / ASIDE,
        )


def check_start(config: Config, stage: str, start: Start) -> None:
    """Raise what `Run.starting_point` would raise about earlier checkpoints, as far as their manifests tell.

    The command line calls this before Ray starts.
    """
    directory = RunDir(config.storage, config.name)
    directory.location.reach()
    places = (Restart(directory, stage).checkpoints, directory.checkpoints(stage))
    newest = next(filter(None, (Checkpoints(place).newest() for place in places)), None)
    if newest is not None and start == "new":
        raise already_begun(config, stage, newest)
    if newest is not None and start == "resume":
        refuse_fixed(stage, changes_since(config, directory, stage, newest))


def already_begun(config: Config, stage: str, newest: CheckpointRef) -> ConfigError:
    """Return the error for a stage that has checkpoints, when the user has not said what to do with them."""
    return ConfigError(
        f"a run named {config.name!r} without checkpoints of stage {stage}",
        f"one that has done {newest.iteration} iterations, in {newest.location}",
        "Add --resume to continue it, --fresh to start it over, or give this run another name=",
    )


def changes_since(config: Config, directory: RunDir, stage: str, newest: CheckpointRef) -> list[Change]:
    """Return the options that are not those of a checkpoint; none if an earlier version wrote it without them."""
    if "config" not in newest.meta:
        return []
    directories = newest.meta["directory"], str(directory.location)
    return resumed_with(stage, newest.meta["config"], config.model_dump(mode="json"), directories)


def report_changes(stage: str, iteration: int, changes: Sequence[Change]) -> None:
    """Warn of options that are not those of the checkpoint, which a resume follows from here on."""
    if changes:
        text = "%s goes on from iteration %d with other options than its checkpoint: %s"
        log.warning(text, stage, iteration, "; ".join(map(str, changes)))
    if order := [change.option for change in changes if decides_order(change.option)]:
        log.warning("with another %s, rows may be repeated or skipped from here on", ", ".join(order))


def refuse_fixed(stage: str, changes: Sequence[Change]) -> None:
    """Raise CheckpointError if an option that decides what a checkpoint holds has changed."""
    fixed = [change for change in changes if is_fixed(stage, change.option)]
    if fixed:
        raise CheckpointError(
            "options that fit the checkpoint's weights",
            "; ".join(f"{c.option}: checkpoint {show(c.before)}, now {show(c.now)}" for c in fixed),
            "Set these as they were, start over (--fresh), or start a run of another name (name=)",
        )


def finish_restart(directory: RunDir, stage: str) -> None:
    """Complete a new start that was killed after its first checkpoint; forget one that had none."""
    restart = Restart(directory, stage)
    directory.restarting.discard(stage)
    if not restart.folder.exists():
        return
    if restart.moving or Checkpoints(restart.checkpoints).latest() is not None:
        directory.prepare()
        log.warning("%s: the earlier results are in %s now", stage, restart.promote())
    else:
        log.warning("%s: forgetting a new start that was interrupted before its first checkpoint", stage)
        restart.discard()


def advice(config: Config, stage: str) -> str:
    """What to type after a stage has ended early. Reads the run's directory alone."""
    directory = RunDir(config.storage, config.name)
    restarted = Checkpoints(Restart(directory, stage).checkpoints).iterations()
    iterations = restarted or Checkpoints(directory.checkpoints(stage)).iterations()
    if not iterations:
        return "nothing was saved yet: the same command starts again"
    if not restarted and Restart(directory, stage).folder.exists():
        return (
            f"nothing of the new start was saved and the earlier results are untouched: --resume continues them from "
            f"iteration {iterations[-1]}, --fresh starts over again"
        )
    return f"--resume continues from the checkpoint of iteration {iterations[-1]}"


@contextmanager
def open_run(config: Config) -> Iterator[Run]:
    """Claim the run, join or start the cluster, and stop every actor at the end."""
    directory = RunDir(config.storage, config.name)
    directory.location.reach()
    grace = config.cluster.grace_s
    stopper = Stopper(grace if grace is not None else GRACE_IN_JOB_S if in_ray_job() else GRACE_S)
    with stopper.installed(), stopper.explained():
        try:
            with _session(config, stopper) as session:
                directory.prepare()
                topology = Topology(config, session)
                with _errors_explained(session, stopper):
                    try:
                        yield Run(config, directory, session, topology, stopper=stopper)
                        session.finished()
                    finally:
                        if session.alive():
                            topology.stop()
        finally:
            for prefix in (SCRATCH, ADAPTERS):
                sweep(prefix)  # engines end by being killed


@contextmanager
def _session(config: Config, stopper: Stopper) -> Iterator[Session]:
    with ExitStack() as stack:
        with phase("starting Ray"):
            session = stack.enter_context(start_session(config, stopper.fail if stopper.able else None))
        stopper.install()
        yield session


@contextmanager
def _errors_explained(session: Session, stopper: Stopper) -> Iterator[None]:
    """Errors that follow from a signal or from a lost head are reported as that.

    A scheduler may send SIGTERM to every process of a job, so that actors are gone before the driver has ended.
    """
    try:
        yield
    except (RayError, RlaifError) as error:
        if stopper.requested:
            log.warning("while ending: %s", str(error).strip().splitlines()[-1])
            raise Interrupted(stopper.requested) from error
        if isinstance(error, RayError) and not session.alive():
            raise head_lost(session.address) from error
        raise


def require_below_run(config: Config, example: str, **written: str) -> None:
    """Raise ConfigError unless every path that a command writes to is below the run directory.

    Elsewhere the command would replace the user's files. `written`: paths by option; `example`: a configuration that
    sets them correctly.
    """
    run = str(RunDir(config.storage, config.name).location)
    for option, path in written.items():
        if not path.startswith(run + "/"):
            raise ConfigError(f"{option} below the run directory, {run}", path, f"Leave {option} as in {example}")
