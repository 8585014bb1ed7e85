"""From a score per answer to a reward per token, and the running scale of returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from rlaif.errors import ContractError
from rlaif.objectives.masked import Moments, scale_of, wide, zero_outside
from rlaif.records import Masked, Outcome, total

if TYPE_CHECKING:  # objectives need torch alone; options only name the types of arguments
    from rlaif.config.schema import Terms

LARGEST = 1e16
"""The largest reward that is trained on: the value loss squares returns and adds them up in float32, which ends at 3e38."""


def shaped_score(
    value: float, parts: Mapping[str, float], finish_reason: str, length: int, max_tokens: int, terms: Terms
) -> Outcome:
    """Return the score of one answer with the terms added as named parts; its value is the sum of all parts.

    Returns Masked, with the reason, if that sum is not finite though every part is. Raises ContractError if the reward
    has a part of the same name as a term. A term of weight 0 adds no part.

    Args:
        value: The score without the terms.
        parts: The named parts that add up to `value`.
        finish_reason: `terms.no_eos` is added unless this is `stop`, that is, also for `cut`.
        length: Response tokens; `terms.length * length / max_tokens` is added.
        max_tokens: The longest answer, in tokens.
        terms: Weights of the two terms.
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
            "Rename that part in the reward function (`ppo.reward`).",
        )
    return total({**parts, **added}, value + sum(added.values()))


def trainable(outcome: Outcome, scale: float) -> Outcome:
    """Return the outcome, or Masked if its value times `scale` is beyond what the losses can hold (LARGEST)."""
    if isinstance(outcome, Masked) or abs(outcome.value * scale) <= LARGEST:
        return outcome
    scaled = f" times ppo.reward_scale {scale:g}" if scale != 1 else ""
    return Masked(f"the reward {outcome.value:g}{scaled} is beyond {LARGEST:g}, and its square beyond float32")


def token_rewards(score: Tensor, kl: Tensor, coef: float, mask: Tensor) -> Tensor:
    """Return rewards [B, T]: -coef * kl on every response token, plus the score on the last (Ziegler et al. 2019, eq. 2).

    score [B] in reward units; kl [B, T] in nats; mask [B, T]. A row without response tokens gets no reward at all.
    With a mask of ones the score is placed on the last slot of the padded answer (VLM-RLAIF).
    """
    on = mask.bool()
    # The last token is the one with a single token from itself on; counting from the right also serves masks with gaps.
    tokens_to_go = on.flip(1).cumsum(1).flip(1)
    last = on & (tokens_to_go == 1)
    penalty = zero_outside(-coef * wide(kl), on)
    return penalty + zero_outside(wide(score)[:, None].expand(last.shape), last)


class RunningMoments:
    """Mean and variance of everything seen so far, merged batch by batch (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self.m2 = 0.0

    def update(self, batch: Moments) -> None:
        """Merge a batch's moments, already summed over ranks."""
        if not batch.count:
            return
        # M2 = M2_a + M2_b + delta^2 n_a n_b / n; a sum of squares minus a squared mean would cancel on large means.
        count = self.count + batch.count
        shift = batch.mean - self.mean
        self.m2 += batch.var * batch.count + shift**2 * self.count * batch.count / count
        self.mean += shift * batch.count / count
        self.count = count

    @property
    def var(self) -> float:
        """Return the population variance, 0 while nothing was counted."""
        return self.m2 / self.count if self.count else 0.0

    @property
    def scale(self) -> float | None:
        """Return the standard deviation, or None while there is no spread beyond rounding.

        A clip range in units of such a spread would freeze the critic.
        """
        return scale_of(self.mean, self.var)

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count = float(state["count"])
        self.mean = float(state["mean"])
        self.m2 = float(state["m2"])
