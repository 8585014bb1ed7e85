"""M-RoPE rules by name: the one the engine serves and its rival, so that a parity check can say who follows which."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from transformers import PretrainedConfig

from rlaif.models.family import qwen2_positions


def grid_positions(ids: np.ndarray, features: dict, config: PretrainedConfig) -> np.ndarray:
    """[3, L]: as `qwen2_positions`, but text after a video resumes at max(h, w) // merge, as transformers >= 5.19 does."""
    positions = qwen2_positions(ids, features, config)
    grid = features.get("video_grid_thw")
    if grid is None:
        return positions
    merge = config.vision_config.spatial_merge_size
    t, h, w = (int(grid[0][0]), int(grid[0][1]) // merge, int(grid[0][2]) // merge)
    before = int(np.argmax(ids == config.video_token_id))
    after = before + t * h * w
    positions[:, after:] = np.arange(len(ids) - after) + before + max(h, w)
    return positions


POSITION_RULES: dict[str, Callable] = {
    "positions: text resumes after the largest used so far": qwen2_positions,
    "positions: text resumes at max(height, width)": grid_positions,
}
