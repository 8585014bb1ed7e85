"""Dataset files that options name: they exist, or the error names the command that makes them."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.config.schema import Config
from rlaif.errors import ConfigError
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.run.datasets import data_path


def check_file(inquiry: Inquiry, option: str, file: str, command: str | None = None) -> None:
    """Report a dataset file that does not exist; `command` is the one that makes it."""
    inquiry.attempt(option, _require_file, inquiry.config, option, file, command)


def check_prompt_files(inquiry: Inquiry, option: str, files: Sequence[str]) -> None:
    """Report each prompt file that does not exist."""
    for file in files:
        check_file(inquiry, option, file)


def _require_file(config: Config, option: str, file: str, command: str | None) -> None:
    path = data_path(config, file)
    if path.is_file():
        return
    fix = f"Set {option}, or data.root ({config.data.root})."
    if command:
        fix = f"Run `{command}` first, or set {option}."
    raise ConfigError(f"{option}: a file", f"no file at {path}", fix)
