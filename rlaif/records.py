"""The records that travel between roles. A sample has the same key from the dataset file to the update."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

Key = tuple[str, int]
"""The identity of a sample: (prompt_id, sample_index)."""

SCORE = "score"
"""The part of a reward that has no other name."""


@dataclass(frozen=True)
class Prompt:
    """One row of a prompts file that was validated (rlaif/data/rows.py)."""

    prompt_id: str
    video: str
    """Path relative to `data.root` of a video file or a folder of frames. Empty: a question without a video."""
    question: str
    answer: str | None = None
    captions: tuple[str, ...] = ()
    """Dense captions in time order: the reward model's context."""
    extra: dict = field(default_factory=dict)
    """Every other field of the row, untouched (a checker may read it)."""
    frames: tuple[int, ...] = ()
    """Native frame numbers of the part of the video that is shown; empty: frames sampled over all of it."""
    video_sha256: str = ""
    """Hash of the video's content (`FrameSpec.sha256`) if the video was probed, else empty. With it, another file behind
    the same name is another prompt for answers, captions and judgements that were stored before."""


@dataclass(frozen=True)
class Sample:
    """One generated answer, as the rollout engine returned it."""

    prompt: Prompt
    sample_index: int
    """Number of the answer among those to the same prompt."""
    frames_hash: str
    """Hash of the FrameSpec the engine saw."""
    visual_tokens: int
    """Number of tokens that stand for the video in the prompt."""
    prompt_ids: np.ndarray
    """[P] int32: the prompt as the engine expanded it, visual placeholders included."""
    response_ids: np.ndarray
    """[T] int32: sampled tokens, the end-of-turn token included when it was sampled."""
    logprobs: np.ndarray
    """[T] float32: the engine's log-probability of each sampled token."""
    response: str
    finish_reason: str
    """`stop` (the end-of-turn token was sampled), `length`, or `cut` (at one of `sampling.truncate_at`)."""
    policy_version: int
    """The one version of the policy that produced every token."""

    @property
    def key(self) -> Key:
        """Return the sample's identity."""
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
    """[K] float32: the log-probability of each of K words as the first word of the answer."""
    sample_index: int = 0


@dataclass(frozen=True)
class Probe:
    """A fixed prompt and response for which both the rollout engine and the learner compute the log-probs."""

    question: str
    video: str | None = None
    """Path relative to `data.root`; None: a text prompt."""
    response_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Probed:
    """What the rollout engine or the learner computes for a probe."""

    logprobs: np.ndarray
    """[T] float32: the log-probability of each response token."""
    frames: str | None = None
    """Hash (SHA-256) of the frames as they went into the processor; None for a text prompt."""


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
    """Whether the failure may pass (a server that is down), so that another run should try again."""


Outcome = Scored | Masked


def total(parts: Mapping[str, float], value: float) -> Outcome:
    """Return the parts with their sum `value`, or Masked if it is not finite: large parts can add up to infinity."""
    if math.isfinite(value):
        return Scored(value, dict(parts))
    summands = ", ".join(f"{name!r} {part:g}" for name, part in parts.items())
    return Masked(f"the sum of its parts is {value} ({summands})")


def reward_outcome(result: float | dict[str, float]) -> Outcome:
    """Return the outcome of a number, or of named parts that add up to one.

    The outcome is Masked, with the reason, if a part or the sum is not finite, or if there are no parts at all.
    """
    numbers = result if isinstance(result, dict) else {SCORE: result}
    if not numbers:
        return Masked("no parts")
    # Every part is converted before any is judged: what is no number is an error, whatever the others are.
    parts = {name: float(value) for name, value in numbers.items()}
    for name, value in parts.items():
        if not math.isfinite(value):
            return Masked(f"part {name!r} is {value}")
    return total(parts, sum(parts.values()))


@dataclass(frozen=True)
class Experience:
    """What one PPO update learns from: the samples of an iteration that have a reward, and their scores.

    The stage that generates and scores samples builds it and passes it to `LearnerGroup.train_ppo`, which sends each rank
    its part. It holds neither masked samples nor prompts without an answer: every sample is trained on. The ranks add what
    networks compute (log-probs of policy and reference, values), and from that rewards per token, advantages and returns
    (learners/experience.py).
    """

    samples: tuple[Sample, ...]
    """Their keys differ; the order has no effect."""
    scores: tuple[float, ...]
    """One finite number per sample: the reward with all terms and weights, before `ppo.reward_scale` and the KL penalty."""

    def __len__(self) -> int:
        return len(self.samples)

    def part(self, indices: Iterable[int]) -> Experience:
        """Return the samples at these indices with their scores, in the order of the indices."""
        samples: list[Sample] = []
        scores: list[float] = []
        for index in indices:
            samples.append(self.samples[index])
            scores.append(self.scores[index])
        return Experience(tuple(samples), tuple(scores))
