"""Seeds are derived from what they are for, never from call order."""

from __future__ import annotations

import hashlib


def derive(*parts: object) -> int:
    """A 31-bit seed that depends on nothing but `parts` (e.g. run seed, iteration, prompt_id, sample_index)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
