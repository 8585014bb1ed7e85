"""Statistics of a set of pairs and of what was left out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rlaif.feedback.lengths import Lengths
from rlaif.feedback.pairing import PairSet, ScoredPair

BINS = 10
"""Of the histogram of margins."""


def pair_report(built: PairSet) -> dict[str, Any]:
    """Return counts of pairs and prompts, drops by reason, lengths in words, places and margins, as plain values for JSON."""
    balance = built.balance
    return {
        "pairs": len(built.pairs),
        "prompts": built.prompts,
        "prompts_with_pairs": len({pair.chosen.prompt_id for pair in built.pairs}),
        "candidates": built.candidates,
        "candidates_dropped": built.candidates_dropped,
        "considered": built.considered,
        "dropped": built.dropped,
        "lengths": {
            "ratio": balance.ratio,
            "longer": balance.longer,
            "before": _lengths(balance.before),
            "after": _lengths(balance.after),
        },
        "chosen_is_earlier": _chosen_is_earlier(built.pairs),
        "margin": _margins([pair.margin for pair in built.pairs]),
    }


def _lengths(lengths: Lengths) -> dict[str, Any]:
    return asdict(lengths) | {"imbalance": lengths.imbalance}


def _chosen_is_earlier(pairs: Sequence[ScoredPair]) -> float | None:
    """Return the share of pairs whose chosen answer was sampled first; far from 1/2, scores depend on the position."""
    earlier = [pair.chosen.sample_index < pair.rejected.sample_index for pair in pairs]
    return float(np.mean(earlier)) if earlier else None


def _margins(margins: Sequence[float]) -> dict[str, Any]:
    """Return mean and histogram of score differences; `edges` has one more entry than `counts`."""
    if not margins:
        return {"mean": None, "edges": [], "counts": []}
    counts, edges = np.histogram(margins, bins=BINS)
    return {"mean": float(np.mean(margins)), "edges": edges.tolist(), "counts": counts.tolist()}
