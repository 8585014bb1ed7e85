"""An open run: its directory, its cluster session and its actors, shared by the stages that work on it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from cluster.checkpoint import CheckpointRef, Checkpoints, check_identity
from cluster.session import Session, start
from rlaif.config.schema import Config
from rlaif.errors import CheckpointError, ConfigError
from rlaif.rundir import RunDir
from rlaif.stages.topology import Topology
from rlaif.terminal import phase
from rlaif.tracking import Tracker

log = logging.getLogger(__name__)

Start = Literal["new", "resume", "fresh"]
"""How a stage begins: refuse where checkpoints exist, continue from the newest, or start over."""


@dataclass
class Run:
    config: Config
    directory: RunDir
    session: Session
    topology: Topology
    within: RunDir | None = None
    """The directory of the whole, where this is one part of a study."""
    places: dict[str, str] = field(default_factory=dict)
    """Where each row that was read is (`FILE line N`), by its id: what turns out about it later is said with its place."""

    def placed(self, ids: Iterable[str]) -> list[str]:
        """Return ids, each with the place of its row if that is known."""
        return [f"{name!r} ({self.places[name]})" if name in self.places else repr(name) for name in ids]

    @property
    def shared(self) -> RunDir:
        """Where lies what all parts of a study have in common, such as what a judge's server was paid for."""
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

        Raises ConfigError where a stage has checkpoints and the user asked for neither `--resume` nor `--fresh`,
        CheckpointError where they belong to another model. Both come before any actor starts.
        """
        latest = checkpoints.latest()
        if start == "fresh":
            checkpoints.rewind(0)
            latest = None
        elif latest is None and checkpoints.iterations():
            raise CheckpointError(
                f"a complete checkpoint of stage {stage}",
                f"only damaged ones in {checkpoints.root}",
                "the storage; or add --fresh to start over",
            )
        elif latest is not None and start == "new":
            raise ConfigError(
                f"a run named {self.config.name!r} without checkpoints of stage {stage}",
                f"one that has done {latest.iteration} iterations, in {checkpoints.root}",
                "add --resume to continue it, --fresh to start it over, or give this run another name=",
            )
        elif latest is not None:
            check_identity(latest.meta["identity"], identity)
        elif start == "resume":
            log.warning("%s: nothing to resume in %s; starting from the beginning", stage, checkpoints.root)
        self.directory.write_config(self.config.model_dump(mode="json"))
        return latest


@contextmanager
def open_run(config: Config) -> Iterator[Run]:
    """Claim the run, join or start the cluster, and stop every actor at the end."""
    directory = RunDir(config.storage, config.name)
    directory.location.reach()
    with ExitStack() as stack:
        with phase("starting Ray"):
            session = stack.enter_context(start(config))
        directory.prepare()
        topology = Topology(config, session)
        stack.callback(topology.stop)
        yield Run(config, directory, session, topology)
