"""The reward actor: scores answers with a reward model that reads the video's captions, or with a function.

Nothing here loads torch unless there is a reward model: an actor with a function is ready within a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rlaif.config.schema import Model
from rlaif.functions import FunctionScorer
from rlaif.records import Key, Outcome, RewardInput

if TYPE_CHECKING:
    from rlaif.models.video_features import Frames
    from rlaif.models.vision import SharedFeatures


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
        """Load the reward.

        reward: path or URI of a reward model, or {"path": `package.module:name`}. make_frames, make_features: build the
        clients inside the actor. The rest is ModelScorer's.
        """
        self.scorer: Callable[[Sequence[RewardInput]], dict[Key, Outcome]]
        if isinstance(reward, str):
            from rlaif.models.reward import ModelScorer  # loads torch, which a function does not wait for

            features = make_features() if make_features else None
            self.scorer = ModelScorer(
                reward, make_frames(), model, tokens_per_microbatch, cache_bytes, features, weights, max(1, threads)
            )
        else:
            self.scorer = FunctionScorer(reward["path"])

    def score(self, inputs: Sequence[RewardInput]) -> dict[Key, Outcome]:
        """Return one outcome per input, by key."""
        return self.scorer(inputs)

    def score_timed(self, inputs: Sequence[RewardInput]) -> tuple[dict[Key, Outcome], float]:
        """Return the same and the seconds it took."""
        began = time.perf_counter()
        outcomes = self.score(inputs)
        return outcomes, time.perf_counter() - began

    def ready(self) -> bool:
        """Return True: the first call that returns says that the reward is loaded."""
        return True
