"""The best evaluation of a training stage so far: its checkpoint is spared from pruning, and a resume knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.checkpoint import CheckpointRef


@dataclass(frozen=True)
class Best:
    """Of equal scores the first."""

    iteration: int | None = None
    score: float = float("-inf")

    @classmethod
    def of(cls, checkpoint: CheckpointRef | None) -> Best:
        """As a checkpoint remembers it."""
        return cls(**checkpoint.meta.get("best", {})) if checkpoint else cls()

    def after(self, iteration: int, metrics: Mapping[str, float], metric: str = "eval/score") -> Best:
        """With one more evaluation; metrics without `metric`, or where it is NaN, change nothing."""
        score = metrics.get(metric)
        return Best(iteration, score) if score is not None and score > self.score else self

    def spared(self) -> tuple[int, ...]:
        return () if self.iteration is None else (self.iteration,)

    def state(self) -> dict:
        return {} if self.iteration is None else vars(self)
