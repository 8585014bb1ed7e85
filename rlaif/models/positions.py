"""How long a prompt with its answer may be, by what the model's configuration says."""

from __future__ import annotations

from rlaif.models.model_dir import ModelDir

_UNSCALED = (None, "default", "mrope")
"""Kinds of rotary positions that end at `max_position_embeddings`; the others are scaled beyond it."""


def model_positions(model: ModelDir) -> int | None:
    """Return how many positions a model has; None if it does not say, or can be served with more."""
    text = model.config.get_text_config()
    # of another type than a dict: nothing is known about its scaling
    rope = getattr(text, "rope_parameters", None) or {}
    kind = rope.get("rope_type") if isinstance(rope, dict) else "unknown"
    return getattr(text, "max_position_embeddings", None) if kind in _UNSCALED else None
