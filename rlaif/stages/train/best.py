"""The best evaluation of a training stage so far: its checkpoint is spared from pruning, and a resume knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.checkpoint import CheckpointRef


@dataclass(frozen=True)
class Best:
    """The iteration with the highest score so far; ties go to the earliest."""

    iteration: int | None = None
    score: float = float("-inf")

    @classmethod
    def of(cls, checkpoint: CheckpointRef | None) -> Best:
        """Return the best evaluation that a checkpoint knows; none without a checkpoint."""
        state = checkpoint.meta.get("best", {}) if checkpoint else {}
        return cls(**state)

    def after(self, iteration: int, metrics: Mapping[str, float], metric: str = "eval/score") -> Best:
        """Return the best after one more evaluation. Nothing changes if `metric` is missing or NaN."""
        score = metrics.get(metric)
        if score is not None and score > self.score:
            return Best(iteration, score)
        return self

    def spared(self) -> tuple[int, ...]:
        """Return the iterations whose checkpoints are not pruned."""
        return () if self.iteration is None else (self.iteration,)

    def state(self) -> dict:
        """Return what a checkpoint keeps, as JSON values."""
        return {} if self.iteration is None else vars(self)
