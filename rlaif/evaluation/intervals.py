"""How far a measured rate may be from the true one."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(successes: float, trials: int, level: float = 0.95) -> tuple[float, float] | tuple[None, None]:
    """Return the score interval of a rate (Wilson 1927); half successes (ties) are allowed.

    (None, None) without trials. Raises ValueError for successes below 0 or above the trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    if not trials:
        return None, None
    z = NormalDist().inv_cdf(0.5 + level / 2)
    rate, spread = successes / trials, z * z / trials
    # (rate + z²/2n ± z sqrt(rate (1 - rate) / n + z²/4n²)) / (1 + z²/n), with spread = z²/n
    middle = rate + spread / 2
    half = z * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    low = (middle - half) / (1 + spread)
    high = (middle + half) / (1 + spread)
    # At 0 and 1 rounding would put the rate itself outside.
    return max(0.0, min(low, rate)), min(1.0, max(high, rate))
