"""From a score per answer to a reward per token, and the running scale of returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from rlaif.errors import ContractError
from rlaif.objectives.masked import Moments, keep, scale_of, wide
from rlaif.records import Masked, Outcome, total

LARGEST = 1e16
"""The largest reward that is trained on: the value loss squares returns and adds them up in float32, which ends at 3e38."""


class Terms(Protocol):
    """Weights of the terms added to a score (`ppo.terms` of the configuration)."""

    no_eos: float
    length: float


def shaped_score(
    value: float, parts: Mapping[str, float], finish_reason: str, length: int, max_tokens: int, terms: Terms
) -> Outcome:
    """Return the score of one answer with the terms as named parts; the value stays the sum of the parts.

    Masked, with the reason, if that sum is not finite though every part is.

    no_eos: `terms.no_eos` when the answer did not end by itself (`finish_reason` other than `stop`, so `cut` too);
    length: `terms.length * length / max_tokens`, `length` in response tokens. A term of weight 0 adds no part.
    """
    added = {}
    if terms.no_eos:
        added["no_eos"] = terms.no_eos if finish_reason != "stop" else 0.0
    if terms.length:
        added["length"] = terms.length * length / max_tokens
    clash = sorted(added.keys() & parts.keys())
    if clash:
        raise ContractError(
            "reward parts named apart from the terms",
            f"{', '.join(clash)} in both",
            "rename the reward function's part",
        )
    return total({**parts, **added}, value + sum(added.values()))


def trainable(outcome: Outcome, scale: float) -> Outcome:
    """Return the outcome, or Masked if its value times `scale` is beyond what the losses can hold (LARGEST)."""
    if isinstance(outcome, Masked) or abs(outcome.value * scale) <= LARGEST:
        return outcome
    scaled = f" times ppo.reward_scale {scale:g}" if scale != 1 else ""
    return Masked(f"the reward {outcome.value:g}{scaled} is beyond {LARGEST:g}, and its square beyond float32")


def token_rewards(score: Tensor, kl: Tensor, coef: float, mask: Tensor) -> Tensor:
    """-coef * kl on every response token, plus the score on the last one (Ziegler et al. 2019, eq. 2). -> [B, T].

    score [B] in reward units; kl [B, T] in nats; mask [B, T]. A row without response tokens gets no reward at all.
    With a mask of ones the score lands on the last slot of the padded answer (VLM-RLAIF).
    """
    on = mask.bool()
    last = on & (on.flip(1).cumsum(1).flip(1) == 1)
    return keep(-coef * wide(kl), on) + keep(wide(score)[:, None].expand(last.shape), last)


class RunningMoments:
    """Mean and variance of everything seen so far, merged batch by batch (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.m2 = 0.0, 0.0, 0.0

    def update(self, batch: Moments) -> None:
        """Merge a batch's moments, already summed over ranks."""
        if not batch.count:
            return
        count, shift = self.count + batch.count, batch.mean - self.mean
        self.m2 += batch.var * batch.count + shift**2 * self.count * batch.count / count
        self.mean += shift * batch.count / count
        self.count = count

    @property
    def var(self) -> float:
        """Population variance; 0 when nothing was seen."""
        return self.m2 / self.count if self.count else 0.0

    @property
    def scale(self) -> float | None:
        """Standard deviation; None while there is no spread beyond rounding: a clip range in its units would freeze the critic."""
        return scale_of(self.mean, self.var)

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean, self.m2 = (float(state[name]) for name in ("count", "mean", "m2"))
