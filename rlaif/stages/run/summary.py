"""The end of every stage: its main figures, the places of its files, and the commands that can follow.

A summary is printed after the actors have stopped, as the last lines of the command. The commands in it are complete:
they carry the program, the configuration and the options that were typed.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.io.storage import Location, locate

NextStage = tuple[str, str, Sequence[str]]
"""(purpose, name, further options) of a stage that can follow."""


@dataclass(frozen=True)
class CommandLine:
    """The words that a user typed after a stage: the configuration file, and options that replace those of the file."""

    config: str
    overrides: Sequence[str] = ()

    def command(self, stage: str, *more: str) -> str:
        """Return a shell command that runs `stage` with the same options; `more` are options that replace them."""
        changed = {option.partition("=")[0] for option in more}
        same = [option for option in self.overrides if option.partition("=")[0] not in changed]
        words = shlex.join([self.config, *same, *more])
        return f"{program()} {stage} {words}"


@dataclass
class Summary:
    """The last lines of a stage."""

    figures: dict[str, str] = field(default_factory=dict)
    places: dict[str, object] = field(default_factory=dict)
    table: str = ""
    following: Sequence[NextStage] = ()
    """The stages that can follow, given what this run's options point to."""
    remark: str = ""
    """What the headline says after the duration."""

    def text(self, headline: str, command_line: CommandLine) -> str:
        """Return the lines to print, with a command for each stage that can follow."""
        lines = ["", f"{headline}: {self.remark}" if self.remark else headline]
        if self.table:
            lines += ["", self.table, ""]
        rows = {**self.figures, **self.places}
        width = max(map(len, rows), default=0)
        for name, value in rows.items():
            lines.append(f"  {name:{width}}  {value}")
        if self.following:
            lines.append("next:")
        for purpose, stage, options in self.following:
            lines += [f"  {purpose}", f"    {command_line.command(stage, *options)}"]
        return "\n".join(lines)


def count_text(counts: Mapping[str, Any]) -> str:
    """Return the counts that are not zero, as words."""
    words = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    return ", ".join(words)


def is_export(path: str, export: Location) -> bool:
    """Return whether an option names a stage's export."""
    return str(locate(path)) == str(export)


def duration(seconds: float) -> str:
    """Return a duration with its unit, for people."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def program() -> str:
    """Return how this program was started, so that what is printed can be typed in the same place."""
    script = Path(sys.argv[0])
    if script.parts[-2:] == ("rlaif", "__main__.py"):
        return shlex.join([sys.executable, "-m", "rlaif"])
    # Inside another program, such as a test.
    if script.name != "rlaif":
        return "rlaif"
    on_path = shutil.which("rlaif")
    if on_path and Path(on_path).resolve() == script.resolve():
        return "rlaif"
    return shlex.quote(sys.argv[0])
