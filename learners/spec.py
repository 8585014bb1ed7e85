"""What a learner group consists of: plain data that the driver sends to every rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlaif.config.cluster import Cluster
from rlaif.config.schema import Lora, Model, Optim, Video


@dataclass(frozen=True)
class RoleSpec:
    """One network of the group: trained (it has an optimizer) or frozen (a reference)."""

    name: str
    base: str
    """Model directory or hub name. Roles with adapters on the same base share its frozen weights."""
    lora: Lora | None = None
    optim: Optim | None = None
    total_steps: int = 1
    """Optimizer steps (or iterations: `ppo.schedule_per`) of the whole run, for the learning-rate schedule."""
    head: Literal["none", "value", "reward"] = "none"
    head_init: Literal["normal", "uniform"] = "normal"
    """How a reward head starts; a value head starts at zero."""
    outputs: int = 1
    """Scalars that the head gives: of a reward model one per dimension."""
    train_vision: bool = False
    """With full weights: train the vision tower. An adapter leaves it alone."""
    train_projector: bool = False
    """With full weights: train the projector between tower and language model."""
    start: str | None = None
    """An export whose adapter (or full weights) the role starts from; its head is not taken over."""


@dataclass(frozen=True)
class LearnerSpec:
    """Everything a rank needs to build its share of the group."""

    roles: tuple[RoleSpec, ...]
    model: Model
    cluster: Cluster
    max_tokens: int
    """Longest sequence of a dataset row, in positions."""
    feature_cache_bytes: int
    """Bound of each cache of processed videos."""
    tokens_per_microbatch: int
    """Padded positions per forward."""
    temperature: float = 1.0
    """Divides the logits, as it did when the engine sampled."""
    seed: int = 0
    deterministic: bool = False
    """Refuse kernels whose results vary from run to run."""
    video: Video = field(default_factory=Video)
    """How frames are chosen: exports carry it as their frame recipe."""
