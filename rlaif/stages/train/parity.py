"""The parity gate: a run goes on only while rollout engine and learner compute the same log-probs.

PPO's ratio compares the two. Where they drift apart without an error (a position rule, a stale head or cache, frames in
another order) it learns from noise, so the gate stops the run and names what differs.
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

TRIED = 64
"""Prompts that the gate tries at most."""

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
        prompts: Sequence[Prompt],
        seed: int,
        timeout: float,
        state: Mapping[str, Any] | None = None,
    ):
        """The question of the first of `prompts` that can be answered is asked with and without its video.

        state: of the run that is resumed (`state_dict`), so that its checks go on with the same texts. Raises DataError
        when none of the first `TRIED` prompts can be answered.
        """
        self.limit = config.limit or LIMITS[dtype]
        self.every, self.rollouts, self.learners, self.timeout = config.every, rollouts, learners, timeout
        self.sampling = sampling.model_copy(update={"max_tokens": config.tokens})
        self._seed, self._prompts = seed, {prompt.prompt_id: prompt for prompt in prompts[:TRIED]}
        self._before: list[Probed] | None = None
        """The learner's answer at the last check."""
        self._unusable: list[str] = []
        """Why each prompt that was tried is not asked."""
        self.prompt_id = ""
        self.probes: list[Probe] = []
        if state is None or state["prompt_id"] not in self._prompts:
            self._choose()
        else:
            self.prompt_id = state["prompt_id"]
            asked = zip(self._asked(), state["responses"], strict=True)
            self.probes = [replace(probe, response_ids=tuple(response)) for probe, response in asked]

    def state_dict(self) -> dict[str, Any]:
        """Return the prompt that is asked about and the probes' responses, by kind."""
        return {"prompt_id": self.prompt_id, "responses": [list(probe.response_ids) for probe in self.probes]}

    def _choose(self) -> None:
        """Take the first prompt that the engine answers with and without its video; those that fail are not tried again."""
        self._before = None
        while self._prompts:
            self.prompt_id = next(iter(self._prompts))
            try:
                self.probes = [
                    self.rollouts.respond(probe, self.sampling, derive(self._seed, "parity", kind), self.timeout)
                    for kind, probe in zip(KINDS, self._asked(), strict=True)
                ]
                return
            except DataError as error:
                self._drop(error)
        raise DataError(
            f"a prompt among the first {len(self._unusable)} that the engine can answer, for the parity gate",
            f"none; the last one: {self._unusable[-1]}",
            "replace the videos that do not decode, or remove their rows",
        )

    def _asked(self) -> tuple[Probe, Probe]:
        prompt = self._prompts[self.prompt_id]
        return Probe(prompt.question), Probe(prompt.question, prompt.video)

    def _drop(self, error: DataError) -> None:
        log.warning("parity gate: not on prompt %r: %s", self.prompt_id, error.found)
        self._unusable.append(f"{self.prompt_id!r}: {error.found}")
        del self._prompts[self.prompt_id]

    def due(self, publishes: int) -> bool:
        return self.every > 0 and publishes % self.every == 0

    def check(self) -> dict[str, float]:
        """Return the differences of the rollout actor that is furthest from the learner, as metrics.

        A prompt whose video has become unusable gives way to the next one. Raises ParityError beyond the limit, naming the
        actor, the kind of prompt and, if it is recognised, the cause.
        """
        while True:
            try:
                # the engine first: learner ranks would not all notice, and those that go on wait for the others
                theirs = self.rollouts.probe(self.probes, self.sampling, self.timeout)
                own = self._learner()
                break
            except DataError as error:
                self._drop(error)
                self._choose()
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
