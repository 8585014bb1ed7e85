"""M-RoPE rules by name: the one that the engine follows and its rival, so that a parity check can say which side follows which."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from transformers import PretrainedConfig

from rlaif.models.family import qwen2_positions


def grid_positions(ids: np.ndarray, features: dict, config: PretrainedConfig) -> np.ndarray:
    """Return positions [3, L] as `qwen2_positions`, but text after a video resumes at max(h, w) // merge.

    transformers does so since 5.19; log-probs after a video then differ from the engine's by up to 0.25.
    """
    positions = qwen2_positions(ids, features, config)
    grid = features.get("video_grid_thw")
    if grid is None:
        return positions
    merge = config.vision_config.spatial_merge_size
    steps, height, width = map(int, grid[0])
    rows, columns = height // merge, width // merge
    before = int(np.argmax(ids == config.video_token_id))
    after = before + steps * rows * columns
    resume = before + max(rows, columns)
    positions[:, after:] = np.arange(len(ids) - after) + resume
    return positions


POSITION_RULES: dict[str, Callable] = {
    "positions: text resumes after the largest used so far": qwen2_positions,
    "positions: text resumes at max(height, width)": grid_positions,
}
