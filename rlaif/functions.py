"""Functions that a configuration names as `package.module:name`. Nothing here loads torch: such a reward is ready in a second."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from rlaif.errors import ConfigError
from rlaif.records import Key, Masked, Outcome, RewardInput, reward_outcome


def load_function(path: str) -> Callable:
    """Return the function at `package.module:name`. Raises ConfigError if there is none."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            "a function as `package.module:name`", f"{path!r} ({error})", "Correct the path, or set PYTHONPATH."
        ) from error


class FunctionScorer:
    """A reward function: `f(prompt, response) -> float or dict of parts`. An error of the function masks that sample."""

    def __init__(self, path: str):
        """Load the function; raises ConfigError if there is none."""
        self.path, self.function = path, load_function(path)

    def __call__(self, inputs: Sequence[RewardInput]) -> dict[Key, Outcome]:
        """Return one outcome per input, by key."""
        return {one.key: self._outcome(one) for one in inputs}

    def _outcome(self, one: RewardInput) -> Outcome:
        try:
            return reward_outcome(self.function(one.prompt, one.response))
        except Exception as error:  # a user's code: the failure is kept as the sample's typed outcome and counted
            return Masked(f"{self.path}: {type(error).__name__}: {error}")
