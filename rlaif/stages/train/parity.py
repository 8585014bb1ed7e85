"""The parity gate: a run goes on only while rollout engine and learner compute the same log-probs.

PPO's ratio compares the two. If they drift apart without an error (a position rule, a stale head or cache, frames in
another order), PPO learns from noise, so the gate stops the run and names what differs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from actors.pool import RolloutPool
from learners.group import LearnerGroup
from learners.parity import STALE_HEAD, hypotheses
from rlaif.config.schema import Parity, Sampling
from rlaif.errors import DataError, ParityError
from rlaif.records import Probe, Probed, Prompt
from rlaif.seeds import derive

log = logging.getLogger(__name__)

MAX_PROMPTS = 64
"""Number of prompts that the gate tries at most."""

# float32: the two sides agree to about 3e-6 on every family. bfloat16: ten times what the demo's model showed
# (docs/architecture.md).
LIMITS = {"float32": 1e-4, "bfloat16": 0.03}
"""Nats per token, mean over a probe."""

KINDS = ("text", "after_video")


class Gate:
    """A check that compares both sides on a fixed text prompt and a fixed video prompt, with responses sampled once."""

    def __init__(
        self,
        config: Parity,
        dtype: str,
        sampling: Sampling,
        rollouts: RolloutPool,
        learners: LearnerGroup,
        prompts: Sequence[Prompt],
        seed: int,
        timeout: float,
        state: Mapping[str, Any] | None = None,
    ):
        """Sample the responses to the question of the first answerable prompt, with and without its video.

        Args:
            timeout: seconds to wait for an actor's answer.
            state: `state_dict` of the run that is resumed, so that its checks go on with the same texts.

        Raises:
            DataError: none of the first `MAX_PROMPTS` prompts can be answered.
        """
        self.limit = config.limit or LIMITS[dtype]
        self.every = config.every
        self.rollouts = rollouts
        self.learners = learners
        self.timeout = timeout
        self.sampling = sampling.model_copy(update={"max_tokens": config.tokens})
        self._seed = seed
        self._prompts = {prompt.prompt_id: prompt for prompt in prompts[:MAX_PROMPTS]}
        self._before: list[Probed] | None = None
        """The learner's log-probs at the last check."""
        self._unusable: list[str] = []
        """Prompts that were tried and cannot be used, with the reason."""
        self.prompt_id = ""
        self.probes: list[Probe] = []
        if state is None or state["prompt_id"] not in self._prompts:
            self._choose()
        else:
            self.prompt_id = state["prompt_id"]
            for probe, response in zip(self._questions(), state["responses"], strict=True):
                self.probes.append(replace(probe, response_ids=tuple(response)))

    def state_dict(self) -> dict[str, Any]:
        """Return the id of the prompt and the probes' responses, in the order of `KINDS`."""
        responses = [list(probe.response_ids) for probe in self.probes]
        return {"prompt_id": self.prompt_id, "responses": responses}

    def _choose(self) -> None:
        """Take the first prompt that the engine answers with and without its video. Prompts that fail are not tried again."""
        self._before = None
        while self._prompts:
            self.prompt_id = next(iter(self._prompts))
            try:
                self.probes = self._sample_responses()
                return
            except DataError as error:
                self._drop(error)
        raise DataError(
            f"a prompt among the first {len(self._unusable)} that the engine can answer, for the parity gate",
            f"none; the last one: {self._unusable[-1]}",
            "Replace the videos that do not decode, or remove their rows.",
        )

    def _sample_responses(self) -> list[Probe]:
        probes = []
        for kind, probe in zip(KINDS, self._questions(), strict=True):
            seed = derive(self._seed, "parity", kind)
            probes.append(self.rollouts.respond(probe, self.sampling, seed, self.timeout))
        return probes

    def _questions(self) -> tuple[Probe, Probe]:
        prompt = self._prompts[self.prompt_id]
        return Probe(prompt.question), Probe(prompt.question, prompt.video)

    def _drop(self, error: DataError) -> None:
        log.warning("parity gate: not on prompt %r: %s", self.prompt_id, error.found)
        self._unusable.append(f"{self.prompt_id!r}: {error.found}")
        del self._prompts[self.prompt_id]

    def due(self, publishes: int) -> bool:
        """Return whether to check after this many publishes."""
        return self.every > 0 and publishes % self.every == 0

    def check(self) -> dict[str, float]:
        """Return the differences of the rollout actor that is furthest from the learner, as metrics.

        A prompt whose video has become unusable is replaced by the next one.

        Raises:
            ParityError: beyond the limit; it names the actor, the kind of prompt and, if it is recognised, the cause.
        """
        while True:
            try:
                # The engine first: not all learner ranks would notice a broken video, and the others would wait for them
                # in a collective.
                theirs = self.rollouts.probe(self.probes, self.sampling, self.timeout)
                own = self._learner()
                break
            except DataError as error:
                self._drop(error)
                self._choose()
        distances = {name: differences(own, probed) for name, probed in theirs.items()}
        worst = max(distances, key=lambda name: max(distances[name]))
        other_frames = [name for name, probed in theirs.items() if probed[1].frames != own[1].frames]
        if other_frames:
            raise self._mismatch(other_frames[0], own, theirs[other_frames[0]])
        if not max(distances[worst]) <= self.limit:  # NaN is a mismatch
            raise self._mismatch(worst, own, theirs[worst])
        self._before = own
        text, after_video = distances[worst]
        return {"parity/text": text, "parity/after_video": after_video}

    def _learner(self) -> list[Probed]:
        """Return the policy's log-probs. Raises ParityError if ranks that must hold the same weights do not agree."""
        first, *others = self.learners.probe("policy", self.probes)
        for rank, probed in enumerate(others, 1):
            distance = differences(first, probed)
            if not max(distance) <= self.limit:
                raise ParityError(
                    "learner ranks that hold the same weights",
                    f"rank {rank} {_distance_text(distance)} from rank 0",
                    "Resume from the last checkpoint; if it repeats, compare the hardware and libraries of the ranks.",
                    cause="learner ranks",
                )
        return first

    def _mismatch(self, actor: str, own: Sequence[Probed], theirs: Sequence[Probed]) -> ParityError:
        cause, change = self._cause(actor, own, theirs)
        return ParityError(
            f"log-probs of rollout engine and learner within {self.limit:g} nats (ppo.parity.limit)",
            f"{actor} {_distance_text(differences(own, theirs))}; {cause}",
            change,
            cause=cause,
        )

    def _cause(self, actor: str, own: Sequence[Probed], theirs: Sequence[Probed]) -> tuple[str, str]:
        """Return (what differs, what to do).

        Each known mistake is imitated on one side: if both sides then agree, that mistake is the cause.
        """
        text, video = differences(own, theirs)
        if own[1].frames != theirs[1].frames:
            return (
                "frames: the two sides were given different pixels",
                "Look at the frame store, and at what is between it and the two sides.",
            )
        for hypothesis in hypotheses():
            if self._agree(self.learners.probe("policy", self.probes, hypothesis)[0], theirs):
                if hypothesis == STALE_HEAD:
                    return "stale head: the engine uses the model directory's", "Publish lm_head.weight explicitly."
                return (
                    f"{hypothesis} (the engine, not the learner)",
                    "Correct the family's rule in rlaif/models/family.py.",
                )
        if self._before and self._agree(self._before, theirs):
            return (
                "weights: the engine still answers with those of the last check",
                "Look at the publish and at its receiver.",
            )
        if self._agree(self.learners.probe("reference", self.probes)[0], theirs):
            return (
                "weights: the engine answers with the unadapted base",
                "Look at the adapter's publish and at its receiver.",
            )
        if text <= self.limit and self._agree(own, self._fresh(actor)):
            return "stale encoder cache: the engine keeps visual features of older weights", "Reset it after a publish."
        if text <= self.limit:
            return (
                "after-video tokens only",
                "Compare vision tower, projector, pixel values and positions of both sides.",
            )
        return (
            "text tokens too" if video > self.limit else "text tokens only",
            "Compare weights, dtype and kernels of both sides.",
        )

    def _fresh(self, actor: str) -> list[Probed]:
        return self.rollouts.probe(self.probes, self.sampling, self.timeout, fresh=True)[actor]

    def _agree(self, one: Sequence[Probed], other: Sequence[Probed]) -> bool:
        return max(differences(one, other)) <= self.limit


def differences(one: Sequence[Probed], other: Sequence[Probed]) -> tuple[float, float]:
    """Mean absolute difference of log-probs (nats per token) of the text probe and of the video probe.

    A difference is infinite if either side is not finite: a NaN would compare as if it were small.
    """
    text, video = zip(one, other, strict=True)
    return _mean_difference(*text), _mean_difference(*video)


def _mean_difference(one: Probed, other: Probed) -> float:
    difference = np.mean(np.abs(one.logprobs.astype(np.float64) - other.logprobs))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf))


def _distance_text(distance: tuple[float, float]) -> str:
    text, video = distance
    return f"{text:.2g} (text) and {video:.2g} (after video) nats per token apart"
