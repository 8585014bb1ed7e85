"""The reward actor: scores answers with a reward model that reads the video's captions, or with a function.

Nothing here loads torch until a reward model is: an actor with a function is up within a second.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rlaif.config.schema import Model
from rlaif.errors import ConfigError
from rlaif.records import Answer, Key, Masked, Outcome, scored

if TYPE_CHECKING:
    from rlaif.models.video_features import Frames
    from rlaif.models.vision import SharedFeatures


class FunctionScorer:
    """`f(prompt, response) -> float or dict of parts`. What it raises masks that sample, with the reason."""

    def __init__(self, path: str):
        self.path, self.function = path, load_function(path)

    def __call__(self, answers: Sequence[Answer]) -> dict[Key, Outcome]:
        return {answer.key: self._score(answer) for answer in answers}

    def _score(self, answer: Answer) -> Outcome:
        try:
            return scored(self.function(answer.prompt, answer.response))
        except Exception as error:  # a user's code: the failure is kept as the sample's typed outcome and counted
            return Masked(f"{self.path}: {type(error).__name__}: {error}")


class RewardActor:
    """The Ray actor's body."""

    def __init__(
        self,
        reward: str | dict,
        make_frames: Callable[[], Frames],
        model: Model,
        tokens_per_microbatch: int,
        cache_bytes: int,
        threads: int,
        make_features: Callable[[], SharedFeatures] | None = None,
        weights: Mapping[str, float] | None = None,
    ):
        self.scorer: Callable[[Sequence[Answer]], dict[Key, Outcome]]
        if isinstance(reward, str):
            from actors.reward_model import ModelScorer  # loads torch, which a function does not wait for

            features = make_features() if make_features else None
            self.scorer = ModelScorer(
                reward, make_frames(), model, tokens_per_microbatch, cache_bytes, features, weights, max(1, threads)
            )
        else:
            self.scorer = FunctionScorer(reward["path"])

    def score(self, answers: Sequence[Answer]) -> dict[Key, Outcome]:
        """One outcome per answer, by key."""
        return self.scorer(answers)

    def score_timed(self, answers: Sequence[Answer]) -> tuple[dict[Key, Outcome], float]:
        """Return the same and the seconds it took."""
        began = time.perf_counter()
        return self.score(answers), time.perf_counter() - began

    def ready(self) -> bool:
        return True


def load_function(path: str) -> Callable:
    """`package.module:name`; ConfigError where there is none."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            "a function as `package.module:name`", f"{path!r} ({error})", "Correct the path, or set PYTHONPATH"
        ) from error
