"""Errors that a user can act on: what was expected, what was found, and a fix."""

from __future__ import annotations

from collections.abc import Sequence


class RlaifError(Exception):
    """Base of every error that this project raises on purpose; the command line prints it without a traceback.

    `expected` and `found` are noun phrases. `fix` is an imperative sentence that names the option or the command:
    "Set `data.root` to the folder of the videos." (tests/test_messages.py reads all of them.)
    """

    def __init__(self, expected: str, found: str, fix: str):
        self.expected, self.found, self.fix = expected, found, fix
        super().__init__(f"expected {expected}\n  found    {found}\n  fix      {fix}")

    def __reduce__(self):
        # pickle, and so Ray, rebuilds an exception from `args`, which has one entry here instead of three.
        return type(self), (self.expected, self.found, self.fix)


def named(names: Sequence[str], most: int = 8) -> str:
    """Return the first names of a list, and how many more there are."""
    text = ", ".join(names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text


class ConfigError(RlaifError):
    """A configuration that cannot run."""


class DataError(RlaifError):
    """A dataset file, row or video that cannot be used."""


class ContractError(RlaifError):
    """Two parts of the system disagree (frames, tokens, weights, versions)."""


class NumericsError(RlaifError):
    """Losses or gradients that stay infinite or NaN."""


class ParityError(ContractError):
    """Rollout engine and learner compute different log-probs for the same tokens; `cause` names what differs."""

    def __init__(self, expected: str, found: str, fix: str, cause: str = "unknown"):
        super().__init__(expected, found, fix)
        self.cause = cause

    def __reduce__(self):
        return type(self), (self.expected, self.found, self.fix, self.cause)


class PlacementError(RlaifError):
    """A cluster without room for the actors of a run."""


class StorageError(RlaifError):
    """A file of the run that cannot be written."""


class CheckpointError(StorageError):
    """A checkpoint that cannot be written or loaded."""


class DeadlineError(RlaifError):
    """An actor that did not answer in time."""


class HeadLostError(RlaifError):
    """A cluster whose head no longer answers: nothing that goes through Ray can succeed."""
