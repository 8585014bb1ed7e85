"""The parity gate: a run goes on only while rollout engine and learner compute the same log-probs.

PPO's ratio compares the two. Where they drift apart without an error (a position rule, a stale head or cache, frames in
another order) it learns from noise, so the gate stops the run and names what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from actors.pool import RolloutPool
from learners.group import LearnerGroup
from learners.parity import STALE_HEAD, hypotheses
from rlaif.config.schema import Parity, Sampling
from rlaif.errors import ParityError
from rlaif.records import Probe, Probed, Prompt
from rlaif.seeds import derive

LIMITS = {"float32": 1e-4, "bfloat16": 0.03}
"""Nats per token, mean over a probe. In bfloat16 ten times what the demo's model showed (docs/architecture.md)."""

KINDS = ("text", "after_video")


class Gate:
    """Compares both sides on a fixed text prompt and a fixed video prompt, whose responses it has sampled once."""

    def __init__(
        self,
        config: Parity,
        dtype: str,
        sampling: Sampling,
        rollouts: RolloutPool,
        learners: LearnerGroup,
        prompt: Prompt,
        seed: int,
        timeout: float,
        responses: Sequence[Sequence[int]] | None = None,
    ):
        """`prompt`: its question is asked with and without its video. Raises DataError when the video does not decode.

        responses: those of the run that is resumed (`state_dict`), so that its checks go on with the same texts.
        """
        self.limit = config.limit or LIMITS[dtype]
        self.every, self.rollouts, self.learners, self.timeout = config.every, rollouts, learners, timeout
        self.sampling = sampling.model_copy(update={"max_tokens": config.tokens})
        asked = (Probe(prompt.question), Probe(prompt.question, prompt.video))
        if responses is None:
            self.probes = [
                rollouts.respond(probe, self.sampling, derive(seed, "parity", kind), timeout)
                for kind, probe in zip(KINDS, asked, strict=True)
            ]
        else:
            self.probes = [replace(probe, response_ids=tuple(r)) for probe, r in zip(asked, responses, strict=True)]
        self._before: list[Probed] | None = None
        """The learner's answer at the last check."""

    def state_dict(self) -> list[list[int]]:
        """The probes' responses, by kind."""
        return [list(probe.response_ids) for probe in self.probes]

    def due(self, publishes: int) -> bool:
        return self.every > 0 and publishes % self.every == 0

    def check(self) -> dict[str, float]:
        """Differences of the rollout actor that is furthest from the learner, as metrics.

        Raises ParityError beyond the limit, naming the actor, the kind of prompt and, where it is recognised, the cause.
        """
        own = self._learner()
        theirs = self.rollouts.probe(self.probes, self.sampling, self.timeout)
        apart = {name: differences(own, probed) for name, probed in theirs.items()}
        worst = max(apart, key=lambda name: max(apart[name]))
        other = next((name for name, probed in theirs.items() if probed[1].frames != own[1].frames), None)
        if other or not max(apart[worst]) <= self.limit:
            raise self._mismatch(other or worst, own, theirs[other or worst])
        self._before = own
        return {f"parity/{kind}": value for kind, value in zip(KINDS, apart[worst], strict=True)}

    def _learner(self) -> list[Probed]:
        """The policy's log-probs; ParityError where ranks that must hold the same weights do not agree."""
        first, *others = self.learners.probe("policy", self.probes)
        for rank, found in enumerate(others, 1):
            if not max(differences(first, found)) <= self.limit:
                raise ParityError(
                    "learner ranks that hold the same weights",
                    f"rank {rank} {_apart(differences(first, found))} from rank 0",
                    "resume from the last checkpoint; if it repeats, the ranks' hardware or libraries differ",
                    cause="learner ranks",
                )
        return first

    def _mismatch(self, actor: str, own: Sequence[Probed], theirs: Sequence[Probed]) -> ParityError:
        cause, change = self._cause(actor, own, theirs)
        return ParityError(
            f"log-probs of rollout engine and learner within {self.limit:g} nats (ppo.parity.limit)",
            f"{actor} {_apart(differences(own, theirs))}; {cause}",
            change,
            cause=cause,
        )

    def _cause(self, actor: str, own: Sequence[Probed], theirs: Sequence[Probed]) -> tuple[str, str]:
        """(what differs, what to do). Each known mistake is imitated on one side: the one that gives agreement is it."""
        text, video = differences(own, theirs)
        if own[1].frames != theirs[1].frames:
            return (
                "frames: the two sides were given different pixels",
                "the frame store, or what lies between it and them",
            )
        for hypothesis in hypotheses():
            if self._agree(self.learners.probe("policy", self.probes, hypothesis)[0], theirs):
                if hypothesis == STALE_HEAD:
                    return "stale head: the engine uses the model directory's", "publish lm_head.weight explicitly"
                return f"{hypothesis} (the engine, not the learner)", "the family's rule in rlaif/models/family.py"
        if self._before and self._agree(self._before, theirs):
            return "weights: the engine still answers with those of the last check", "the publish, or its receiver"
        if self._agree(self.learners.probe("reference", self.probes)[0], theirs):
            return "weights: the engine answers with the unadapted base", "the adapter's publish, or its receiver"
        if text <= self.limit and self._agree(own, self._fresh(actor)):
            return "stale encoder cache: the engine keeps visual features of older weights", "reset it after a publish"
        if text <= self.limit:
            return "after-video tokens only", "vision tower, projector, pixel values and positions on both sides"
        return (
            "text tokens too" if video > self.limit else "text tokens only",
            "weights, dtype and kernels on both sides",
        )

    def _fresh(self, actor: str) -> list[Probed]:
        return self.rollouts.probe(self.probes, self.sampling, self.timeout, fresh=True)[actor]

    def _agree(self, one: Sequence[Probed], other: Sequence[Probed]) -> bool:
        return max(differences(one, other)) <= self.limit


def differences(one: Sequence[Probed], other: Sequence[Probed]) -> tuple[float, float]:
    """Mean absolute difference of log-probs (nats per token) of the text probe and of the video probe.

    Infinite where either side's is no finite number: a NaN would compare as if it were small.
    """
    text, video = (
        float(np.nan_to_num(np.mean(np.abs(a.logprobs.astype(np.float64) - b.logprobs)), nan=np.inf, posinf=np.inf))
        for a, b in zip(one, other, strict=True)
    )
    return text, video


def _apart(found: tuple[float, float]) -> str:
    return f"{found[0]:.2g} (text) and {found[1]:.2g} (after video) nats per token apart"
