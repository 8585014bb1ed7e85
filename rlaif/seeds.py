"""Seeds that depend on their purpose, never on the order of calls."""

from __future__ import annotations

import hashlib


def derive(*parts: object) -> int:
    """Derive a 31-bit seed from `parts` alone (e.g. run seed, iteration, prompt_id, sample_index)."""
    # A unit separator, which no id contains: ("a", "bc") and ("ab", "c") get different seeds.
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
