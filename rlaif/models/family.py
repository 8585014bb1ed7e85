"""What differs between video-language families. Everything else in the project is the same for all of them.

A new family is one entry of FAMILIES; docs/families.md says how to find each field and which test to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PretrainedConfig
from transformers.utils import ModelOutput

from rlaif.errors import ConfigError

Positions = Callable[[np.ndarray, dict, PretrainedConfig], np.ndarray]
"""(expanded ids [L], video features, config) -> position ids [L] or [3, L] by the rollout engine's rule."""

EngineVideo = Callable[[ModelOutput, Any, PretrainedConfig], dict]
"""(tower's output, processed video (rlaif/models/encode.py), config) -> a video as vLLM takes precomputed features."""


@dataclass(frozen=True)
class Family:
    """The differences of one Hugging Face `model_type`."""

    model_type: str
    placeholder: str
    """Text, one token, that the chat template writes for a video and the processor expands."""
    positions: Positions
    vision: str
    """Dotted path of the vision tower inside the causal model."""
    projector: tuple[str, ...]
    """Dotted paths of what stands between tower and language model."""
    language: str = "model.language_model"
    """Dotted path of the language model: the only part that gets adapters."""
    visual_id: str = "video_token_id"
    """Field of the configuration: the id of one visual position in the expanded prompt, as the learner sees it. The
    engine may report the placeholder's own id there; it is translated (actors/requests.py)."""
    marks: tuple[str, ...] = ()
    """Media tokens that only the tokenizer knows, no field of the configuration."""
    engine_names: tuple[tuple[str, str], ...] = ()
    """(prefix here, prefix in the engine) where published weights are named differently."""
    adapters: bool = True
    """Whether vLLM serves LoRA adapters for it."""
    engine_video: EngineVideo | None = None
    """How vLLM takes a video's precomputed features; None: it takes pixels only."""

    def engine_name(self, name: str) -> str:
        """A weight's name in the engine, from its name in the Hugging Face model."""
        for here, there in self.engine_names:
            if name.startswith(here):
                return there + name[len(here) :]
        return name


def sequential_positions(ids: np.ndarray, features: dict, config: PretrainedConfig) -> np.ndarray:
    """[L]: 0, 1, 2, ... as rotary language models count."""
    return np.arange(len(ids))


def qwen2_positions(ids: np.ndarray, features: dict, config: PretrainedConfig) -> np.ndarray:
    """M-RoPE positions [3, L] by the rule the published checkpoints were trained with and vLLM serves.

    A video is one block of (time, row, column), time in steps of `second_per_grid_ts`. Text after it resumes at the
    largest position used so far, over all three axes, plus one (transformers >= 5.19 resumes at max(h, w) // merge,
    which shifts every log-prob after the video).
    """
    if "video_grid_thw" not in features:
        return _mrope(ids, config.video_token_id, [])
    seconds = float(np.asarray(features.get("second_per_grid_ts", [1.0])).reshape(-1)[0])
    step = seconds * getattr(config.vision_config, "tokens_per_second", 1.0)
    cells = np.indices(_grid(features, config)).reshape(3, -1).astype(np.float64)
    cells[0] = (cells[0] * step).astype(np.int64)
    return _mrope(ids, config.video_token_id, [cells.astype(np.int64)])


def qwen3_positions(ids: np.ndarray, features: dict, config: PretrainedConfig) -> np.ndarray:
    """M-RoPE positions [3, L] of Qwen3-VL: every grid step is a block of its own, with its time as text before it."""
    if "video_grid_thw" not in features:
        return _mrope(ids, config.video_token_id, [])
    steps, height, width = _grid(features, config)
    return _mrope(ids, config.video_token_id, [np.indices((1, height, width)).reshape(3, -1)] * steps)


def _grid(features: dict, config: PretrainedConfig) -> tuple[int, int, int]:
    """(steps, rows, columns) of a video's visual tokens."""
    steps, height, width = (int(side) for side in features["video_grid_thw"][0])
    merge = config.vision_config.spatial_merge_size
    return steps, height // merge, width // merge


def _mrope(ids: np.ndarray, visual_id: int, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """[3, L]: text counts up on all axes; each run of visual tokens takes its block of cells [3, N]; what follows
    resumes after the block's largest position."""
    positions = np.empty((3, len(ids)), np.int64)
    done = resume = 0
    for cells in blocks:
        begin = done + int(np.argmax(ids[done:] == visual_id))
        end = begin + cells.shape[1]
        positions[:, done:begin] = np.arange(begin - done) + resume
        positions[:, begin:end] = cells + resume + begin - done
        done, resume = end, int(positions[:, begin:end].max()) + 1
    positions[:, done:] = np.arange(len(ids) - done) + resume
    return positions


def qwen_video(output: ModelOutput, video: Any, config: PretrainedConfig) -> dict:
    """Features [N, H], and with them the grid and the seconds per grid step that positions are made from."""
    held = {name: torch.from_numpy(array) for name, array in video.tensors.items() if not name.startswith("pixel")}
    return held | {"video_embeds": torch.cat(list(output["pooler_output"]))}


def qwen3_video(output: ModelOutput, video: Any, config: PretrainedConfig) -> dict:
    """Features with those of the deepstack layers beside them [N, (1 + layers) H], and the time of each grid step."""
    layers = [torch.cat(list(layer)) for layer in (output["pooler_output"], *output["deepstack_features"])]
    spec, group = video.spec, config.vision_config.temporal_patch_size
    times = [index / spec.fps for index in [*spec.indices, *[spec.indices[-1]] * (-len(spec.indices) % group)]]
    # vLLM writes them into the prompt with one digit: the processor's own arithmetic, step by step, rounds alike
    seconds = [(times[i] + times[i + group - 1]) / 2 for i in range(0, len(times), group)]
    return qwen_video(output, video, config) | {"video_embeds": torch.cat(layers, dim=-1), "timestamps": [seconds]}


QWEN = {"placeholder": "<|video_pad|>", "vision": "model.visual", "projector": ("model.visual.merger",)}
LLAVA = {
    "placeholder": "<video>",
    "positions": sequential_positions,
    "vision": "model.vision_tower",
    "projector": ("model.multi_modal_projector", "model.image_newline"),
    "engine_names": (("model.vision_tower.", "model.vision_tower.vision_model."),),
}

FAMILIES = {
    family.model_type: family
    for family in (
        Family("qwen2_vl", positions=qwen2_positions, engine_video=qwen_video, **QWEN),
        Family("qwen2_5_vl", positions=qwen2_positions, engine_video=qwen_video, **QWEN),
        Family(
            "qwen3_vl",
            positions=qwen3_positions,
            engine_video=qwen3_video,
            **QWEN | {"projector": ("model.visual.merger", "model.visual.deepstack_merger_list")},
        ),
        Family("llava_next_video", **LLAVA),
        Family("llava_onevision", **LLAVA, adapters=False),
        Family(
            "internvl",
            placeholder="<video>",
            positions=sequential_positions,
            vision="model.vision_tower",
            projector=("model.multi_modal_projector",),
            visual_id="image_token_id",
            marks=("<video>", "<img>", "</img>"),
        ),
    )
}

MEDIA_FIELDS = tuple(
    f"{kind}_token_{noun}" for kind in ("video", "image", "vision_start", "vision_end") for noun in ("id", "index")
)
"""Fields of a configuration that hold the id of a media token."""


NEW_FAMILY = (
    "add the family to FAMILIES in rlaif/models/family.py, if transformers and vLLM have a class for it: its rule for "
    "position ids, its video placeholder (text) and the id of one visual position, the paths of tower, projector and "
    "language model, the weight names that differ in vLLM, and whether vLLM serves adapters for it. "
    "docs/families.md says how to find each"
)
"""What a user has to supply for a family that is not known here."""


def family_of(config: PretrainedConfig) -> Family:
    """The family of a loaded configuration; ConfigError names the known ones and what a new one needs."""
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"a video-language family that is known here ({', '.join(sorted(FAMILIES))})",
            f"model_type {config.model_type!r}",
            f"Set the option to a model of a known family; {NEW_FAMILY}",
        )
    return FAMILIES[config.model_type]


def engine_video_of(config: PretrainedConfig) -> EngineVideo:
    """How vLLM takes features of this family's videos; ConfigError where it takes pixels only."""
    found = family_of(config).engine_video
    if found is None:
        able = ", ".join(sorted(name for name, family in FAMILIES.items() if family.engine_video))
        raise ConfigError(
            f"rollout.vision: engine for a {config.model_type} policy: vLLM takes features of videos for {able} only",
            "rollout.vision: shared",
            "Set rollout.vision=engine, or ppo.policy to another model",
        )
    return found


def visual_token_id(config: PretrainedConfig) -> int:
    """Id of the token that stands for one visual position of a video, as the model's own processor writes it."""
    return int(getattr(config, family_of(config).visual_id))


def media_token_ids(config: PretrainedConfig) -> tuple[int, ...]:
    """Ids that must never be sampled: a sampled placeholder has no features behind it.

    For a family with `marks`, `config` must come from a model directory: its tokenizer is asked.
    """
    fields = {int(value) for name in MEDIA_FIELDS if (value := getattr(config, name, None)) is not None}
    return tuple(sorted(fields.union(_ids_of(config.name_or_path, family_of(config).marks))))


@lru_cache
def _ids_of(path: str, marks: tuple[str, ...]) -> tuple[int, ...]:
    if not marks:
        return ()
    if not path:
        raise ConfigError(
            "a configuration read from a model directory",
            "one made in memory",
            "Load the configuration with from_pretrained(path)",
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return tuple(token_id(tokenizer, mark) for mark in marks)


def token_id(tokenizer, mark: str) -> int:
    """Id of a media token. Raises ConfigError where the tokenizer does not know it as one token."""
    found = tokenizer.convert_tokens_to_ids(mark)
    if found is None or found == tokenizer.unk_token_id:
        raise ConfigError(
            f"a tokenizer with the token {mark!r}", "none", "Correct the tokenizer in the model directory"
        )
    return int(found)
