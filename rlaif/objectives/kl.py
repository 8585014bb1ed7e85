"""Per-token KL estimators (Schulman 2020, "Approximating KL Divergence") and the controllers of its coefficient."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rlaif.errors import ContractError

EXPONENT_LIMIT = 20.0
"""Log-ratios are cut here before `exp`: far outside any trust region, and inf would become NaN in the backward pass."""

_LARGEST_ERROR = 0.2
"""Bound of the controller's proportional error (Ziegler et al. 2019)."""


def k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Return logp - ref_logp, nats per token: an unbiased estimate of KL(policy || reference) that may be negative.

    Both inputs and the result are [B, T].
    """
    return logp - ref_logp


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Return exp(d) - 1 - d with d = ref_logp - logp, nats per token: an unbiased estimate that is never negative.

    Both inputs and the result are [B, T].
    """
    d = ref_logp - logp
    return torch.expm1(d.clamp(max=EXPONENT_LIMIT)) - d


def token_penalty(logp: Tensor, ref_logp: Tensor, estimator: Literal["k1", "k3"], clamp: bool = False) -> Tensor:
    """Return what is subtracted from each token's reward, before its coefficient, in nats. [B, T] -> [B, T].

    clamp: never below 0, as in VLM-RLAIF: max(0, logp - ref_logp) for k1. It overestimates the KL.
    """
    kl = k1(logp, ref_logp) if estimator == "k1" else k3(logp, ref_logp)
    return kl.clamp(min=0) if clamp else kl


class FixedController:
    """A coefficient that stays what it is."""

    def __init__(self, value: float):
        self.value = value

    def update(self, kl: float, n_samples: int) -> None:
        """Do nothing: there is nothing to adapt."""

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = float(state["value"])


class AdaptiveController:
    """Proportional control of the coefficient in log space (Ziegler et al. 2019, section 2.2).

    `target` is the desired KL in nats per response, `horizon` the number of samples over which the coefficient adapts.
    """

    def __init__(self, value: float, target: float, horizon: float):
        self.value = value
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, n_samples: int) -> None:
        """Multiply the coefficient by 1 + clip(kl / target - 1, -0.2, 0.2) * n_samples / horizon.

        `kl` is the mean KL of `n_samples` answers, in nats per response. A batch counts for one horizon at most. Raises
        ContractError if `kl` is not finite.
        """
        if not math.isfinite(kl):
            raise ContractError(
                "a finite mean KL", str(kl), "Look for a `kl` that is not finite in samples/ of the run."
            )
        error = min(max(kl / self.target - 1.0, -_LARGEST_ERROR), _LARGEST_ERROR)
        # Beyond five horizons per batch, the formula of the paper would turn the coefficient negative.
        horizons = min(n_samples / self.horizon, 1.0)
        self.value *= 1.0 + error * horizons

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = float(state["value"])
