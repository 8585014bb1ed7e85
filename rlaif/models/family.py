"""What differs between video-language families. Everything else in the project is the same for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from transformers import PretrainedConfig

from rlaif.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """The differences of one Hugging Face `model_type`."""

    model_type: str
    placeholder: str
    """Text the chat template writes for a video and the processor expands."""
    positions: Callable[[np.ndarray, dict, PretrainedConfig], np.ndarray]
    """(expanded ids [L], video features, config) -> position ids [L] or [3, L] by the rollout engine's rule."""
    vision: str
    """Dotted path of the vision tower inside the causal model."""
    projector: str
    """Dotted path of the projector between tower and language model."""
    language: str = "model.language_model"
    engine_names: tuple[tuple[str, str], ...] = ()
    """(prefix here, prefix in the engine) where published weights are named differently."""

    def engine_name(self, name: str) -> str:
        for here, there in self.engine_names:
            if name.startswith(here):
                return there + name[len(here) :]
        return name


def sequential_positions(ids: np.ndarray, features: dict, config: PretrainedConfig) -> np.ndarray:
    """[L]: 0, 1, 2, ... as rotary language models count."""
    return np.arange(len(ids))


def qwen2_positions(ids: np.ndarray, features: dict, config: PretrainedConfig) -> np.ndarray:
    """M-RoPE positions [3, L] by the rule the published checkpoints were trained with and vLLM serves.

    Text after a video resumes at the largest position used so far, over all three axes, plus one
    (transformers >= 5.19 resumes at max(h, w) // merge, which shifts every log-prob after the video).
    """
    grid = features.get("video_grid_thw")
    if grid is None:
        return np.broadcast_to(np.arange(len(ids)), (3, len(ids))).copy()
    merge = config.vision_config.spatial_merge_size
    t, h, w = (int(grid[0][0]), int(grid[0][1]) // merge, int(grid[0][2]) // merge)
    seconds = float(np.asarray(features.get("second_per_grid_ts", [1.0])).reshape(-1)[0])
    step = seconds * getattr(config.vision_config, "tokens_per_second", 1.0)
    before = int(np.argmax(ids == config.video_token_id))
    cells = np.indices((t, h, w)).reshape(3, -1).astype(np.float64)
    cells[0] = (cells[0] * step).astype(np.int64)
    video = cells.astype(np.int64) + before
    after = np.arange(len(ids) - before - video.shape[1]) + video.max() + 1
    text = np.broadcast_to(np.arange(before), (3, before))
    return np.concatenate([text, video, np.broadcast_to(after, (3, len(after)))], axis=1)


FAMILIES = {
    family.model_type: family
    for family in (
        Family("qwen2_5_vl", "<|video_pad|>", qwen2_positions, "model.visual", "model.visual.merger"),
        Family("qwen2_vl", "<|video_pad|>", qwen2_positions, "model.visual", "model.visual.merger"),
        Family(
            "llava_next_video",
            "<video>",
            sequential_positions,
            "model.vision_tower",
            "model.multi_modal_projector",
            engine_names=(("model.vision_tower.", "model.vision_tower.vision_model."),),
        ),
    )
}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a loaded configuration; ConfigError names the known ones."""
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"a video-language family that is known here ({', '.join(sorted(FAMILIES))})",
            f"model_type {config.model_type!r}",
            "the model path, or add the family to rlaif/models/family.py (positions, key names, placeholder)",
        )
    return FAMILIES[config.model_type]


def visual_token_id(config: PretrainedConfig) -> int:
    """Id of the token that stands for one visual position of a video."""
    for name in ("video_token_id", "video_token_index"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    raise ConfigError("a configuration with a video token id", f"none in {config.model_type}", "the model path")


def media_token_ids(config: PretrainedConfig) -> tuple[int, ...]:
    """Ids that must never be sampled: a sampled placeholder has no features behind it."""
    names = (
        "video_token_id",
        "video_token_index",
        "image_token_id",
        "image_token_index",
        "vision_start_token_id",
        "vision_end_token_id",
    )
    return tuple(sorted({int(getattr(config, name)) for name in names if getattr(config, name, None) is not None}))
