"""Learning-rate schedules."""

from __future__ import annotations

import math

from rlaif.config.schema import Optim


def learning_rate(optim: Optim, step: int, total: int) -> float:
    """Return the rate of step `step` (from 0) of `total`: linear warm-up, then the schedule down to `min_lr_ratio` at `total`."""
    warmup = optim.warmup_steps or math.ceil(optim.warmup_ratio * total)
    if step < warmup:
        # from zero, the first step has rate 0 and leaves the weights as they are (transformers' schedules)
        return optim.lr * (step + (not optim.warmup_from_zero)) / warmup
    if optim.schedule == "constant":
        return optim.lr
    # steps beyond `total` keep the rate of its end
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    floor = optim.min_lr_ratio
    return optim.lr * (floor + (1.0 - floor) * _remaining(optim.schedule, progress))


def _remaining(schedule: str, progress: float) -> float:
    """Return the share of the rate above its floor that is left: 1 at progress 0, 0 at progress 1."""
    if schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
