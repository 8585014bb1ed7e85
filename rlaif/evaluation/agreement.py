"""How often a judge or a reward model prefers what the reference (people, a checker) prefers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.evaluation.intervals import wilson


@dataclass(frozen=True)
class ComparedPair:
    """One pair of answers as the judge and the reference see it; only the signs count."""

    judged: float | None
    """Above 0: the first answer is better (a score difference, p - 1/2, a winner); 0: a tie; None: no verdict."""
    reference: float | None
    """The same of the reference."""
    dimension: str = "overall"
    prompt_type: str = ""


def agreement_rates(pairs: Sequence[ComparedPair]) -> dict[str, Any]:
    """Return the rates of `_rate` overall, by dimension and by prompt type (pairs without a type are left out there)."""
    typed = [pair for pair in pairs if pair.prompt_type]
    return {
        "overall": _rate(pairs),
        "dimension": _by(pairs, lambda pair: pair.dimension),
        "prompt_type": _by(typed, lambda pair: pair.prompt_type),
    }


def named_groups(report: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield every entry of a report by dimension and by prompt type, with the name that a table or a page shows."""
    for kind in ("dimension", "prompt_type"):
        for name, entry in report[kind].items():
            yield f"{kind}: {name}", entry


def prompt_type_of(row: Mapping[str, Any]) -> str:
    """Return the type that the row of a pair or a prompt names; "" if it names none.

    It is SafeSora's type (`safety.prompt_type`), `provenance.prompt_type`, or a field `prompt_type` or `kind`: the first
    of these that is not empty.
    """
    types = []
    for name in ("safety", "provenance"):
        fields = row.get(name)
        if isinstance(fields, Mapping):
            types.append(fields.get("prompt_type"))
    types += [row.get("prompt_type"), row.get("kind")]
    first = next(filter(None, types), "")
    return first if isinstance(first, str) else ""


def _by(pairs: Iterable[ComparedPair], group_of: Callable[[ComparedPair], str]) -> dict[str, Any]:
    groups: dict[str, list[ComparedPair]] = {}
    for pair in pairs:
        groups.setdefault(group_of(pair), []).append(pair)
    return {name: _rate(groups[name]) for name in sorted(groups)}


def _rate(pairs: Sequence[ComparedPair]) -> dict[str, Any]:
    """Return `agreement` with its 95 % interval [`low`, `high`] over `pairs`.

    A tie of the judge (counted in `ties`) is half right. Left out and counted: pairs without a verdict (`no_verdict`),
    and pairs on which the reference has no preference (`no_reference`).
    """
    counts = {"pairs": 0, "ties": 0, "no_verdict": 0, "no_reference": 0}
    right = 0.0
    for pair in pairs:
        judged, reference = _sign(pair.judged), _sign(pair.reference)
        # Neither None nor 0 is a preference of the reference.
        if not reference:
            counts["no_reference"] += 1
        elif judged is None:
            counts["no_verdict"] += 1
        else:
            counts["pairs"] += 1
            counts["ties"] += judged == 0
            right += (1 + judged * reference) / 2
    low, high = wilson(right, counts["pairs"])
    agreement = right / counts["pairs"] if counts["pairs"] else None
    return {"agreement": agreement, "low": low, "high": high, **counts}


def _sign(value: float | None) -> int | None:
    """Return 1, 0 or -1; None for None and NaN."""
    if value is None or math.isnan(value):
        return None
    return (value > 0) - (value < 0)
