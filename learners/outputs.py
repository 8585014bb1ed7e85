"""What a loss returns for a micro-batch and a step for all of them.

Everything that a loss returns stays on its device: reading a number there waits for the kernels of the forward, so the
learner reads all numbers of a step together, after its last micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif.objectives.metrics import DeviceMetrics, Metrics


@dataclass(frozen=True)
class TokenRatios:
    """pi / pi_old of a micro-batch's tokens, padded and on the device. All fields [B, T]."""

    ratio: Tensor
    """1 on padding."""
    mask: Tensor
    """bool: true on response tokens."""
    after_video: Tensor
    """1 for tokens of a sample with a video, 0 for those of a text prompt."""

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Return (ratio [N], after_video [N]) of the response tokens. Waits for the device: call it after the step."""
        return self.ratio[self.mask], self.after_video[self.mask]


def token_rows(parts: Sequence[TokenRatios]) -> Tensor:
    """Return [N, 2]: ratio and `after_video` (0 or 1) of each token of all parts, of which there is at least one."""
    tokens = [part.tokens() for part in parts]
    ratio = torch.cat([ratio for ratio, _ in tokens])
    after_video = torch.cat([after_video for _, after_video in tokens])
    return torch.stack([ratio, after_video.to(ratio.dtype)], dim=1)


@dataclass(frozen=True)
class LossOutput:
    """A micro-batch's share of a step."""

    loss: Tensor
    """Scalar with a gradient: the micro-batch's share of the step's loss."""
    metrics: DeviceMetrics
    ratios: TokenRatios | None = None
    """Of the policy's loss only: quantiles do not add up, so they are computed from all tokens of an iteration."""


@dataclass(frozen=True)
class StepOutput:
    """What one rank reports of an optimizer step."""

    metrics: Metrics
    ratios: tuple[TokenRatios, ...] = ()
    """One entry per forward of a policy step, in order. A forward that only kept other ranks company has one too."""
