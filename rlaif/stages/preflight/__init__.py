"""Everything about a run that can be found wrong without Ray, found at once: files, models, functions, arithmetic, disk."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.config.load import bullets, checked_stage, examine
from rlaif.config.schema import Config
from rlaif.config.source import read_yaml
from rlaif.errors import ConfigError
from rlaif.io.rundir import RunDir
from rlaif.io.writable import cache_problems, why_not_writable
from rlaif.stages.preflight.inquiry import EXPORTING, Inquiry
from rlaif.stages.preflight.stages import CHECKS, chain


@dataclass(frozen=True)
class Findings:
    config: Config | None
    """None if the options give none."""
    stages: tuple[str, ...]
    problems: list[str]
    notes: list[str]

    def next_stage(self) -> str | None:
        """Return the first stage whose result is not there yet; None without options to check stages for."""
        if self.config is None:
            return None
        run = RunDir(self.config.storage, self.config.name)
        missing = [stage for stage in self.stages if stage not in EXPORTING or not run.export(stage).exists()]
        return (missing or self.stages)[0]


def examine_all(path: str, overrides: Sequence[str] = (), stage: str | None = None) -> Findings:
    """Return every problem of a configuration for one stage, or for all stages from its files to a measured policy.

    Raises ConfigError if there is no file to read, or no YAML in it.
    """
    checked_as = "demo" if stage is None and "demo" in read_yaml(Path(path)) else stage
    config, problems = examine(path, overrides, checked_stage(checked_as))
    if config is None:
        return Findings(None, (), problems, [])
    stages = [checked_as] if checked_as else chain(config)
    inquiry = look_into(config, stages)
    return Findings(config, tuple(stages), problems + inquiry.problems, inquiry.notes)


def look_into(config: Config, stages: Sequence[str]) -> Inquiry:
    """Check what stages need that run one after another. Log lines of what is read are left to the stages."""
    inquiry, level = Inquiry(config), logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        for number, stage in enumerate(stages):
            inquiry.pending = frozenset(stages[:number])
            CHECKS[stage](inquiry)
    finally:
        logging.disable(level)
    inquiry.attempt("storage", _check_storage, inquiry)
    for user, found, fix in cache_problems():
        inquiry.problem(
            f"cache of {user}: expected a folder that can be written\n      found  {found}\n      fix    {fix}"
        )
    return inquiry


def _check_storage(inquiry: Inquiry) -> None:
    config = inquiry.config
    location = RunDir(config.storage, config.name).location
    location.on()  # a URI that no file system is known for
    if location.local and (reason := why_not_writable(location.local)):
        raise ConfigError(f"storage: a folder that can be written, for {location}", reason, "Set storage=FOLDER")


def require(config: Config, stage: str, source: str) -> None:
    """Raise ConfigError, listing every problem, unless a stage can start."""
    inquiry = look_into(config, [stage])
    if inquiry.problems:
        raise ConfigError(f"a run that can start ({source})", bullets(inquiry.problems), "Change what is named above")
