"""Parse JSON strictly: what another reader, or our own writer, would refuse is refused here."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

DIGITS = 300
"""Digits of the longest whole number: a longer one is no float either, and Python refuses to print those beyond 4,300."""


def strict_decoder(refuse: Callable[[str], Any]) -> json.JSONDecoder:
    """Return a decoder that calls `refuse` with the problem, instead of giving a value that JSON cannot hold.

    Those are NaN and Infinity, numbers such as 1e999 that become infinite, whole numbers of more than `DIGITS` digits,
    and an object with one key twice, of which Python would silently keep the last.
    """

    def real(text: str) -> Any:
        value = float(text)
        return value if math.isfinite(value) else refuse(f"{text[:40]} is too large for a number")

    def whole(text: str) -> Any:
        return int(text) if len(text) <= DIGITS else refuse(f"a number of {len(text):,} digits")

    def members(pairs: list[tuple[str, Any]]) -> Any:
        # Python's own decoder keeps the last of two equal keys without a word
        value = dict(pairs)
        if len(value) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            repeated = next(name for name, count in counts.items() if count > 1)
            refuse(f"the key {repeated[:40]!r} twice in one object")
        return value

    return json.JSONDecoder(
        parse_constant=lambda name: refuse(f"{name} is not a JSON number"),
        parse_float=real,
        parse_int=whole,
        object_pairs_hook=members,
    )


def _raise(problem: str) -> None:
    raise ValueError(problem)


_STRICT = strict_decoder(_raise)


def loads(text: str) -> Any:
    """Return the value of a JSON text. Raise ValueError (or RecursionError) for anything else."""
    return _STRICT.decode(text)


def parse(text: str) -> tuple[Any, str | None]:
    """Return the value of a JSON text and what is wrong with it, or None. Raise ValueError for a text that is no JSON."""
    problems: list[str] = []
    try:
        value = loads(text)
        check_unicode(value, text)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        problems.append(str(error))
        # once more, without an exception, for the rest of the value
        value = strict_decoder(problems.append).decode(text)
    return value, problems[0] if problems else None


def check_unicode(value: Any, source: str) -> None:
    r"""Raise ValueError for half a surrogate pair (\ud83d alone), which no UTF-8 file and no tokenizer can hold."""
    # only an escape can hide half a pair, and looking for one is cheaper than encoding every value
    if "\\ud" in source or "\\uD" in source:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair, which UTF-8 cannot hold") from None


def whole(value: Any) -> Any:
    """Return 2 for 2.0: tables store whole numbers as floats if a column has gaps. Anything else is returned as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
