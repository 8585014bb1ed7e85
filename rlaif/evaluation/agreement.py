"""How often a judge or a reward model prefers what the reference (people, a checker) prefers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.evaluation.intervals import wilson


@dataclass(frozen=True)
class Compared:
    """One pair of answers as both sides see it; only the signs count."""

    judged: float | None
    """Above 0: the first answer is better (a score difference, p - 1/2, a winner); 0: a tie; None: no verdict."""
    reference: float | None
    """The same of the reference."""
    dimension: str = "overall"
    prompt_type: str = ""


def agreement(pairs: Sequence[Compared]) -> dict[str, Any]:
    """Overall, by dimension and by prompt type (pairs without one left out there); each as `_rate` gives it."""
    return {
        "overall": _rate(pairs),
        "dimension": _by(pairs, lambda pair: pair.dimension),
        "prompt_type": _by([pair for pair in pairs if pair.prompt_type], lambda pair: pair.prompt_type),
    }


def groups(found: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """What is found by dimension and by prompt type, each with the name that a table or a picture shows."""
    for kind in ("dimension", "prompt_type"):
        for name, one in found[kind].items():
            yield f"{kind}: {name}", one


def prompt_type(row: Mapping[str, Any]) -> str:
    """What the row of a pair or a prompt says its prompt is: SafeSora's type, `provenance.prompt_type`, or a field
    `prompt_type` or `kind`; empty where it does not say."""
    nested = [row.get(name) for name in ("safety", "provenance")]
    told = [one.get("prompt_type") for one in nested if isinstance(one, Mapping)]
    said = next(filter(None, [*told, row.get("prompt_type"), row.get("kind")]), "")
    return said if isinstance(said, str) else ""


def _by(pairs: Iterable[Compared], group_of: Callable[[Compared], str]) -> dict[str, Any]:
    groups: dict[str, list[Compared]] = {}
    for pair in pairs:
        groups.setdefault(group_of(pair), []).append(pair)
    return {name: _rate(groups[name]) for name in sorted(groups)}


def _rate(pairs: Sequence[Compared]) -> dict[str, Any]:
    """agreement with its 95 % interval [low, high] over `pairs`; a tie of the judge (counted in `ties`) is half right.

    Left out and counted: pairs without a verdict (`no_verdict`), and those on which the reference has no preference.
    """
    with_reference = [pair for pair in pairs if _sign(pair.reference)]
    signs = [(_sign(pair.judged), _sign(pair.reference)) for pair in with_reference]
    known = [(judged, reference) for judged, reference in signs if judged is not None]
    right = sum((1 + judged * reference) / 2 for judged, reference in known)
    low, high = wilson(right, len(known))
    return {
        "agreement": right / len(known) if known else None,
        "low": low,
        "high": high,
        "pairs": len(known),
        "ties": sum(judged == 0 for judged, _ in known),
        "no_verdict": len(signs) - len(known),
        "no_reference": len(pairs) - len(with_reference),
    }


def _sign(value: float | None) -> int | None:
    """None for what is no number."""
    if value is None or math.isnan(value):
        return None
    return (value > 0) - (value < 0)
