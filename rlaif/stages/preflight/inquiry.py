"""The state that all checks of one configuration share: files that were read, problems, stages that run before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

MOVED = "Set data.root to that folder; if you moved the folder with its runs in it, set storage too"


@dataclass
class Inquiry:
    """Collects the problems of one configuration. A check continues whatever another check has reported."""

    config: Config
    unreadable: Sequence[str] = ()
    """Options whose defaults replace what the user wrote; they have a problem already."""
    pending: frozenset[str] = frozenset()
    """Stages that run before the one that is checked: their exports need not exist yet."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _rows: dict[str, list | None] = field(default_factory=dict)

    def report(self, option: str, expected: str, found: str, fix: str) -> None:
        """Add a problem of `option`, written like an error."""
        text = problem_text(option, ConfigError(expected, found, fix))
        self._add(option, text if text.startswith(option) else f"{option}: {text}")

    def note(self, text: str) -> None:
        """Add something that a user should know and that stops nothing."""
        if text not in self.notes:
            self.notes.append(text)

    def attempt(self, option: str, call: Callable[..., Result], *args: Any, **options: Any) -> Result | None:
        """Return what a call returns; what it raises becomes a problem of `option`."""
        try:
            return call(*args, **options)
        except RlaifError as error:
            self._add(option, problem_text(option, error))
        # Libraries raise these about a file or bucket that they cannot read.
        except (OSError, ValueError, KeyError) as error:
            self._add(option, f"{option}: {type(error).__name__}: {_first_line(error)}")
        return None

    def succeeds(self, option: str, call: Callable[..., Any], *args: Any) -> bool:
        """Return whether a call raises nothing; what it raises becomes a problem of `option`."""

        def succeeded() -> bool:
            call(*args)
            return True

        return self.attempt(option, succeeded) is True

    def _add(self, option: str, text: str) -> None:
        """Add a problem once, and none of an option whose value is not the user's."""
        if text not in self.problems and not self._is_unreadable(option):
            self.problems.append(text)

    def _is_unreadable(self, option: str) -> bool:
        return any(_overlap(option, path) for path in self.unreadable)

    def export(self, stage: str) -> Location:
        """Return where a stage of this run exports to."""
        return RunDir(self.config.storage, self.config.name).export(stage)

    def made_by(self, path: str) -> str | None:
        """Return the pending stage that will export a model to `path`; None if the model must exist already."""
        # Two different exports cannot have the same path, so the order of the set does not matter.
        for stage in self.pending:
            if str(self.export(stage)) == str(locate(path)) and not Path(path).exists():
                return stage
        return None

    def rows(self, name: str) -> list | None:
        """Return the usable rows of `data.<name>`; None (and a problem, once) if there are none."""
        # Several stages read the same file; a large one takes seconds.
        if name not in self._rows:
            self._rows[name] = self._read(name, getattr(self.config.data, name))
        return self._rows[name]

    def has_file(self, name: str) -> bool:
        """Return whether `data.<name>` is set and exists; a path that cannot be examined counts as missing."""
        file = getattr(self.config.data, name)
        try:
            return bool(file) and data_path(self.config, file).is_file()
        except RlaifError:
            return False

    def _read(self, name: str, file: str) -> list | None:
        option = f"data.{name}"
        kind, purpose = FILES[name]
        if not self._has_root():
            return None
        path = self.attempt(option, data_path, self.config, file)
        if path is None:
            return None
        if not path.is_file():
            reason = f"{path} is a folder" if path.is_dir() else f"no file at {path}"
            self.report(option, purpose, reason, f"Put the file there, or set {option} to the file that you have")
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
        # A bucket has no local folder; reading a file in it reports its own problem.
        if root.local is None or root.local.is_dir():
            return True
        self.report("data.root", "the folder of your files", f"no folder at {root}", MOVED)
        return False

    def _note_skipped(self, option: str, report: Report) -> None:
        if report.skipped:
            self.note(f"{option}: {report.summary(3)}")


def _overlap(option: str, path: str) -> bool:
    """Return whether one path is the other, or in the section that the other names."""
    return option == path or option.startswith(f"{path}.") or path.startswith(f"{option}.")


def problem_text(option: str, error: RlaifError) -> str:
    """Return an error as a problem of `option`."""
    name = "" if option in error.expected else f"{option}: "
    return (
        f"{name}expected {error.expected}\n      found  {_indented(error.found)}\n      fix    {_indented(error.fix)}"
    )


def _indented(text: str) -> str:
    return text.replace("\n", "\n        ")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
