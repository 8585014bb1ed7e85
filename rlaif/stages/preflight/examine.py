"""Check a configuration for one stage, or for all stages from its files to an evaluated policy."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlaif.config.load import bullets, examine
from rlaif.config.schema import Config
from rlaif.config.source import read_yaml
from rlaif.errors import ConfigError
from rlaif.io.rundir import RunDir
from rlaif.io.writable import cache_problems, why_not_writable
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.table import Stage, resolve, scope_of, stage_named


@dataclass(frozen=True)
class Findings:
    """The result of examining one configuration."""

    config: Config | None
    """None if the options give none."""
    stages: tuple[Stage, ...]
    problems: list[str]
    notes: list[str]

    def next_stage(self) -> Stage | None:
        """Return the first stage whose result does not exist yet; None without options to check stages for."""
        if self.config is None:
            return None
        run = RunDir(self.config.storage, self.config.name)
        for stage in self.stages:
            if not stage.resumable or not run.export(stage.name).exists():
                return stage
        return self.stages[0]


def examine_all(path: str, overrides: Sequence[str] = (), name: str | None = None) -> Findings:
    """Return every problem of a configuration for the stage called `name`, or for the whole way to an evaluated policy.

    Raises ConfigError if there is no file to read, or no YAML in it.
    """
    # A configuration of the demo has none of the files that other configurations start from: the demo makes them.
    if name is None and "demo" in read_yaml(Path(path)):
        name = "demo"
    config, problems, unreadable = examine(path, overrides, scope_of(name))
    if config is None:
        return Findings(None, (), problems, [])
    stages = chain(config) if name is None else [stage_named(name)]
    inquiry = look_into(config, stages, unreadable)
    return Findings(config, tuple(stages), problems + inquiry.problems, inquiry.notes)


def chain(config: Config) -> list[Stage]:
    """Return the stages that lead from the files to an evaluated policy, in order.

    These are PPO, the stages that it starts from or whose file exists, and the evaluation if there is a file for it.
    """
    inquiry = Inquiry(config)
    starts = {"ppo": [config.ppo.policy, config.ppo.reward], "reward": [config.reward.init]}
    names = ["ppo"]
    if str(inquiry.export("reward")) in starts["ppo"] or inquiry.has_file("pairs"):
        names.insert(0, "reward")
    if any(str(inquiry.export("sft")) in starts[name] for name in names) or inquiry.has_file("sft"):
        names.insert(0, "sft")
    if inquiry.has_file("eval"):
        names.append("eval")
    return [stage_named(name) for name in names]


def look_into(config: Config, stages: Sequence[Stage], unreadable: Sequence[str] = ()) -> Inquiry:
    """Check what stages need that run one after another, and the disks that they write to."""
    inquiry = Inquiry(config, unreadable)
    with _silenced():
        for number, stage in enumerate(stages):
            inquiry.pending = frozenset(earlier.name for earlier in stages[:number])
            check = resolve(stage.check)
            check(inquiry)
    inquiry.attempt("storage", _check_storage, inquiry)
    for obstacle in cache_problems():
        option = f"cache of {obstacle.user}"
        inquiry.report(option, "a folder that can be written", obstacle.found, obstacle.fix)
    return inquiry


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress warnings about what is read here: the stages log the same when they read it."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(level)


def _check_storage(inquiry: Inquiry) -> None:
    config = inquiry.config
    location = RunDir(config.storage, config.name).location
    # This raises for a URI whose file system is unknown.
    location.on()
    if location.local and (reason := why_not_writable(location.local)):
        raise ConfigError(f"storage: a folder that can be written, for {location}", reason, "Set `storage=FOLDER`.")


def require(config: Config, stage: Stage, source: str) -> None:
    """Raise ConfigError, listing every problem, unless a stage can start."""
    inquiry = look_into(config, [stage])
    if inquiry.problems:
        raise ConfigError(f"a run that can start ({source})", bullets(inquiry.problems), "Change what is named above.")
