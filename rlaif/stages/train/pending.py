"""The samples of one PPO iteration while they come in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.reward_pool import ScoringBatch
from actors.rollout import Answers, Failure
from rlaif.records import RewardInput, Sample

if TYPE_CHECKING:
    from rlaif.stages.train.workers import Roles


@dataclass
class Arriving:
    """An iteration's samples as they come in; each part goes to the reward actors at once."""

    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    scoring: list[ScoringBatch] = field(default_factory=list)
    """Batches that the reward actors score."""
    times: dict[str, float] = field(default_factory=dict)

    def take(self, roles: Roles, answers: Answers) -> None:
        self.samples += answers.samples
        self.failures += answers.failures
        times = self.times
        times["rollout_began"] = min(times.get("rollout_began", answers.began), answers.began)
        times["rollout_ended"] = max(times.get("rollout_ended", answers.ended), answers.ended)
        inputs = [RewardInput(sample.key, sample.prompt, sample.response) for sample in answers.samples]
        self.scoring.append(roles.rewards.score(inputs))
