"""What all checks of one configuration share: the files they read, the problems they find, the stages still to come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rlaif.config.schema import Config
from rlaif.data.read import OwnKind, read_records
from rlaif.data.rows import Report
from rlaif.errors import ConfigError, RlaifError
from rlaif.io.rundir import RunDir
from rlaif.io.storage import Location, locate
from rlaif.stages.run.datasets import data_path

Result = TypeVar("Result")

FILES: dict[str, tuple[OwnKind, str]] = {
    "sft": ("conversations", "conversations for `rlaif sft`"),
    "pairs": ("pairs", "preference pairs for `rlaif reward`; `rlaif pairs` makes them of a judge's labels"),
    "pairs_eval": ("pairs", "held-out preference pairs, or null to hold out some of data.pairs"),
    "prompts": ("prompts", "prompts for `rlaif ppo`"),
    "eval": ("prompts", "held-out prompts for `rlaif eval`, in the form of data.prompts"),
}
"""Kind of each file of `data`, and what the file is for."""

EXPORTING = ("sft", "reward", "ppo")
"""Stages whose exports later stages start from."""

MOVED = "Set data.root to that folder; if you moved the folder with its runs in it, set storage too"


@dataclass
class Inquiry:
    """Collects the problems of one configuration. No check ends because of another one's finding."""

    config: Config
    pending: frozenset[str] = frozenset()
    """Stages that are to run before the one that is checked: their exports need not exist yet."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _rows: dict[str, list | None] = field(default_factory=dict)

    def problem(self, text: str) -> None:
        """Add a problem, once."""
        if text not in self.problems:
            self.problems.append(text)

    def wrong(self, option: str, expected: str, found: str, fix: str) -> None:
        """Add a problem of `option`, written like an error."""
        text = told(option, ConfigError(expected, found, fix))
        self.problem(text if text.startswith(option) else f"{option}: {text}")

    def note(self, text: str) -> None:
        """Add something that a user should know and that stops nothing."""
        if text not in self.notes:
            self.notes.append(text)

    def attempt(self, option: str, call: Callable[..., Result], *args: Any, **options: Any) -> Result | None:
        """Return what a call returns; what it raises becomes a problem of `option`."""
        try:
            return call(*args, **options)
        except RlaifError as error:
            self.problem(told(option, error))
        except (OSError, ValueError, KeyError) as error:  # of a library, about a file or bucket it cannot read
            self.problem(f"{option}: {type(error).__name__}: {_first_line(error)}")
        return None

    def succeeds(self, option: str, call: Callable[..., Any], *args: Any) -> bool:
        """Return whether a call raises nothing; what it raises becomes a problem of `option`."""
        before = len(self.problems)
        self.attempt(option, call, *args)
        return len(self.problems) == before

    def export(self, stage: str) -> Location:
        """Return where a stage of this run exports to."""
        return RunDir(self.config.storage, self.config.name).export(stage)

    def made_by(self, path: str) -> str | None:
        """Return the pending stage that will export a model to `path`; None if the model must be there already."""
        for stage in EXPORTING:
            if stage in self.pending and str(self.export(stage)) == str(locate(path)) and not Path(path).exists():
                return stage
        return None

    def rows(self, name: str) -> list | None:
        """Return the usable rows of `data.<name>`; None (and a problem, once) if there are none."""
        if name not in self._rows:
            self._rows[name] = self._read(name, getattr(self.config.data, name))
        return self._rows[name]

    def has_file(self, name: str) -> bool:
        """Return whether `data.<name>` is set and there; what cannot be found out counts as missing."""
        file = getattr(self.config.data, name)
        try:
            return bool(file) and data_path(self.config, file).is_file()
        except RlaifError:
            return False

    def _read(self, name: str, file: str) -> list | None:
        option, (kind, purpose) = f"data.{name}", FILES[name]
        if not self._has_root():
            return None
        path = self.attempt(option, data_path, self.config, file)
        if path is None:
            return None
        if not path.is_file():
            found = f"{path} is a folder" if path.is_dir() else f"no file at {path}"
            self.wrong(option, purpose, found, f"Put the file there, or set {option} to the file that you have")
            return None
        result = self.attempt(option, read_records, path, self.config.data.root, kind, self.config.data.strict)
        if result is None:
            return None
        rows, report = result
        self._note_skipped(option, report)
        return rows

    def _has_root(self) -> bool:
        """Return whether `data.root` is a folder; one problem says so for all the files below it."""
        root = locate(self.config.data.root)
        if root.local is None or root.local.is_dir():
            return True
        self.wrong("data.root", "the folder of your files", f"no folder at {root}", MOVED)
        return False

    def _note_skipped(self, option: str, report: Report) -> None:
        if report.skipped:
            self.note(f"{option}: {report.summary(3)}")


def told(option: str, error: RlaifError) -> str:
    """Return an error as a problem of `option`."""
    name = "" if option in error.expected else f"{option}: "
    return (
        f"{name}expected {error.expected}\n      found  {_indented(error.found)}\n      fix    {_indented(error.fix)}"
    )


def _indented(text: str) -> str:
    return text.replace("\n", "\n        ")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
