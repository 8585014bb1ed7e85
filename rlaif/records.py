"""The records that travel between roles. A sample is identified by its key from the dataset file to the update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

Key = tuple[str, int]
"""(prompt_id, sample_index)."""

SCORE = "score"
"""The part of a reward that has no other name."""


@dataclass(frozen=True)
class Prompt:
    """One row of a prompts file, already validated (see rlaif/data/rows.py)."""

    prompt_id: str
    video: str
    """Path relative to `data.root`: a video file, or a folder of frames. Empty: a question without a video."""
    question: str
    answer: str | None = None
    captions: tuple[str, ...] = ()
    """Dense captions in time order: the reward model's context."""
    extra: dict = field(default_factory=dict)
    """Every other field of the row, untouched (a checker may read it)."""
    frames: tuple[int, ...] = ()
    """Native frame numbers of the part of the video that is shown; empty: frames sampled over all of it."""
    video_sha256: str = ""
    """Of the video's content (`FrameSpec.sha256`), where it has been probed: another file behind the same name makes another
    prompt to those who answered, captioned and judged it before."""


@dataclass(frozen=True)
class Sample:
    """One generated answer, as the rollout engine returned it."""

    prompt: Prompt
    sample_index: int
    frames_hash: str
    """Hash of the FrameSpec the engine saw."""
    visual_tokens: int
    prompt_ids: np.ndarray
    """[P] int32: the prompt as the engine expanded it, visual placeholders included."""
    response_ids: np.ndarray
    """[T] int32: sampled tokens, the end-of-turn token included when it was sampled."""
    logprobs: np.ndarray
    """[T] float32: the engine's log-probability of each sampled token."""
    response: str
    finish_reason: str
    """`stop` (end-of-turn sampled), `length`, or `cut` (at one of `sampling.truncate_at`)."""
    policy_version: int
    """The one version of the policy that produced every token."""

    @property
    def key(self) -> Key:
        return (self.prompt.prompt_id, self.sample_index)


@dataclass(frozen=True)
class RewardInput:
    """One answer to be scored."""

    key: Key
    prompt: Prompt
    """Its captions are the reward's context (`contextual_prompts` in rlaif/models/reward.py)."""
    response: str


@dataclass(frozen=True)
class Choice:
    """How a model would begin its answer to a prompt."""

    prompt: Prompt
    logprobs: np.ndarray
    """[K] float32: of the K words asked about as the first of the answer."""
    sample_index: int = 0


@dataclass(frozen=True)
class Probe:
    """A fixed prompt and response of which rollout engine and learner both compute the log-probs."""

    question: str
    video: str | None = None
    """None: a text prompt."""
    response_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Probed:
    """What one side makes of a probe."""

    logprobs: np.ndarray
    """[T] float32, of each response token."""
    frames: str | None = None
    """sha256 of the frames as they went into the processor; None for a text prompt."""


@dataclass(frozen=True)
class Scored:
    """A reward that was computed: `value` is the sum of `parts`."""

    value: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Masked:
    """A reward that could not be computed. It never becomes a number; the sample is left out of the update."""

    reason: str
    again: bool = False
    """What failed may pass (a server that is down): worth asking again in another run."""


Outcome = Scored | Masked


def total(parts: Mapping[str, float], value: float) -> Outcome:
    """Return the parts with their sum `value`, or Masked if it is not finite: large parts can add up to infinity."""
    if math.isfinite(value):
        return Scored(value, dict(parts))
    listed = ", ".join(f"{name!r} {part:g}" for name, part in parts.items())
    return Masked(f"the sum of its parts is {value} ({listed})")


def reward_outcome(result: float | dict[str, float]) -> Outcome:
    """Return the outcome of a number, or of named parts that add up to one.

    Masked, with the reason: a part or a sum that is not finite, and no parts at all.
    """
    parts = (
        {name: float(value) for name, value in result.items()} if isinstance(result, dict) else {SCORE: float(result)}
    )
    bad = [name for name, value in parts.items() if not math.isfinite(value)]
    if bad or not parts:
        return Masked(f"part {bad[0]!r} is {parts[bad[0]]}" if bad else "no parts")
    return total(parts, sum(parts.values()))
