"""How long a prompt with its answer may be, by what the model's configuration says."""

from __future__ import annotations

import transformers

from rlaif.io.storage import fetch
from rlaif.models.adapter import base_of

_PLAIN = (None, "default", "mrope")
"""Kinds of rotary positions that end at `max_position_embeddings`; the others are scaled beyond it."""


def positions_of(path: str) -> int | None:
    """Return how many positions a model has; None if it does not say, or can be served with more."""
    text = transformers.AutoConfig.from_pretrained(fetch(base_of(path))).get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kind = rope.get("rope_type") if isinstance(rope, dict) else "unknown"
    return getattr(text, "max_position_embeddings", None) if kind in _PLAIN else None
