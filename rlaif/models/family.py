"""The differences between video-language families. Everything else in the project is the same for all of them.

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
"""(tower's output, processed video (rlaif/models/video_features.py), config) -> a video as vLLM takes precomputed features."""


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
    """Dotted paths of the modules between tower and language model."""
    language: str = "model.language_model"
    """Dotted path of the language model: the only part that gets adapters."""
    visual_id: str = "video_token_id"
    """Field of the configuration: the id of one visual position in the expanded prompt, as the learner sees it. The
    engine may report the placeholder's own id there; it is translated (actors/requests.py)."""
    marks: tuple[str, ...] = ()
    """Media tokens that only the tokenizer knows, no field of the configuration."""
    engine_names: tuple[tuple[str, str], ...] = ()
    """(prefix here, prefix in the engine) of weights that have another name there."""
    adapters: bool = True
    """Whether vLLM serves LoRA adapters for it; else they are merged, and full weights are published."""
    engine_video: EngineVideo | None = None
    """Turns a video's precomputed features into vLLM's input; None: it takes pixels only."""

    def engine_name(self, name: str) -> str:
        """Return a weight's name in the engine, from its name in the Hugging Face model."""
        for own_prefix, engine_prefix in self.engine_names:
            if name.startswith(own_prefix):
                return engine_prefix + name.removeprefix(own_prefix)
        return name


def sequential_positions(ids: np.ndarray, features: dict, config: PretrainedConfig) -> np.ndarray:
    """Return positions [L]: 0, 1, 2, ... as rotary language models count."""
    return np.arange(len(ids))


# vLLM keeps the older rule, which Qwen's checkpoints were trained with as far as is known. Passed explicitly, positions bring the
# two sides' log-probs within 3e-6 of each other; left to transformers 5.19 they differ by up to 0.25.
def qwen2_positions(ids: np.ndarray, features: dict, config: PretrainedConfig) -> np.ndarray:
    """Return M-RoPE positions [3, L] by the rule that the published checkpoints were trained with and vLLM follows.

    A video is one block of (time, row, column), time in steps of `second_per_grid_ts`. Text after it resumes at the
    largest position used so far, over all three axes, plus one (transformers >= 5.19 resumes at max(h, w) // merge,
    which shifts every log-prob after the video).
    """
    if "video_grid_thw" not in features:
        return _mrope(ids, config.video_token_id, [])
    intervals = np.asarray(features.get("second_per_grid_ts", [1.0]))
    seconds = float(intervals.reshape(-1)[0])
    step = seconds * getattr(config.vision_config, "tokens_per_second", 1.0)
    grid = _grid(features, config)
    cells = np.indices(grid).reshape(3, -1).astype(np.float64)
    cells[0] = (cells[0] * step).astype(np.int64)  # the time axis rounds down, as vLLM's does
    return _mrope(ids, config.video_token_id, [cells.astype(np.int64)])


def qwen3_positions(ids: np.ndarray, features: dict, config: PretrainedConfig) -> np.ndarray:
    """Return M-RoPE positions [3, L] of Qwen3-VL: every grid step is a block of its own, with its time as text before it."""
    if "video_grid_thw" not in features:
        return _mrope(ids, config.video_token_id, [])
    steps, height, width = _grid(features, config)
    block = np.indices((1, height, width)).reshape(3, -1)
    return _mrope(ids, config.video_token_id, [block] * steps)


def _grid(features: dict, config: PretrainedConfig) -> tuple[int, int, int]:
    """Return (steps, rows, columns) of a video's visual tokens."""
    steps, height, width = map(int, features["video_grid_thw"][0])
    merge = config.vision_config.spatial_merge_size
    return steps, height // merge, width // merge


def _mrope(ids: np.ndarray, visual_id: int, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Return positions [3, L].

    Text counts up on all axes; each run of visual tokens takes its block of cells [3, N]; the text after it resumes after
    the block's largest position.
    """
    positions = np.empty((3, len(ids)), np.int64)
    start = resume = 0
    for cells in blocks:
        # the next visual token: argmax returns the first True
        begin = start + int(np.argmax(ids[start:] == visual_id))
        end = begin + cells.shape[1]
        text_length = begin - start
        positions[:, start:begin] = np.arange(text_length) + resume
        positions[:, begin:end] = cells + resume + text_length
        start, resume = end, int(positions[:, begin:end].max()) + 1
    positions[:, start:] = np.arange(len(ids) - start) + resume
    return positions


def qwen_video(output: ModelOutput, video: Any, config: PretrainedConfig) -> dict:
    """Return features [N, H], with the grid and the seconds per grid step that positions are computed from."""
    inputs = {}
    for name, array in video.tensors.items():
        if not name.startswith("pixel"):
            inputs[name] = torch.from_numpy(array)
    inputs["video_embeds"] = torch.cat(list(output["pooler_output"]))
    return inputs


def qwen3_video(output: ModelOutput, video: Any, config: PretrainedConfig) -> dict:
    """Return features with those of the deepstack layers beside them [N, (1 + layers) H], and the time of each grid step."""
    # vLLM splits the columns again: first the tower's own features, then one layer after the other
    layers = [torch.cat(list(output["pooler_output"]))]
    for layer in output["deepstack_features"]:
        layers.append(torch.cat(list(layer)))
    indices, group = list(video.spec.indices), config.vision_config.temporal_patch_size
    indices += [indices[-1]] * (-len(indices) % group)  # the last frame fills up the last grid step
    times = [index / video.spec.fps for index in indices]
    # vLLM writes them into the prompt with one digit: the processor's own arithmetic, step by step, rounds alike
    seconds = []
    for start in range(0, len(times), group):
        first, last = times[start], times[start + group - 1]
        seconds.append((first + last) / 2)
    inputs = qwen_video(output, video, config)
    inputs["video_embeds"] = torch.cat(layers, dim=-1)
    inputs["timestamps"] = [seconds]
    return inputs


QWEN = {"placeholder": "<|video_pad|>", "vision": "model.visual", "projector": ("model.visual.merger",)}
# vLLM's LLaVA classes have one more level in the names of the tower's weights than a checkpoint of transformers
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
        # vLLM has no LoRA for it
        Family("llava_onevision", **LLAVA, adapters=False),
        Family(
            "internvl",
            placeholder="<video>",
            positions=sequential_positions,
            vision="model.vision_tower",
            projector=("model.multi_modal_projector",),
            # a video's positions are those of images in an expanded prompt, and no field names the other tokens
            visual_id="image_token_id",
            marks=("<video>", "<img>", "</img>"),
        ),
    )
}

MEDIA_FIELDS = (
    *("video_token_id", "video_token_index", "image_token_id", "image_token_index"),
    *("vision_start_token_id", "vision_start_token_index", "vision_end_token_id", "vision_end_token_index"),
)
"""Fields of a configuration that hold the id of a media token."""


NEW_FAMILY = (
    "Add the family to FAMILIES in rlaif/models/family.py, if transformers and vLLM have a class for it: its rule for "
    "position ids, its video placeholder (text) and the id of one visual position, the paths of tower, projector and "
    "language model, the weight names that differ in vLLM, and whether vLLM serves adapters for it. "
    "docs/families.md says how to find each"
)
"""What a user has to supply for a family that is unknown here."""


def family_of(config: PretrainedConfig) -> Family:
    """Return the family of a loaded configuration. Raises ConfigError with the known ones and what a new one needs."""
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"a video-language family that is known here ({', '.join(sorted(FAMILIES))})",
            f"model_type {config.model_type!r}",
            f"Set the option to a model of a known family. {NEW_FAMILY}.",
        )
    return FAMILIES[config.model_type]


def engine_video_of(config: PretrainedConfig) -> EngineVideo:
    """Return how vLLM takes features of this family's videos. Raises ConfigError if it takes pixels only."""
    engine_video = family_of(config).engine_video
    if engine_video is None:
        able = sorted(name for name, family in FAMILIES.items() if family.engine_video)
        names = ", ".join(able)
        raise ConfigError(
            f"rollout.vision: engine for a {config.model_type} policy: vLLM takes features of videos for {names} only",
            "rollout.vision: shared",
            "Set rollout.vision=engine, or ppo.policy to another model.",
        )
    return engine_video


def visual_token_id(config: PretrainedConfig) -> int:
    """Return the id of one visual position of a video, as the model's own processor writes it."""
    return int(getattr(config, family_of(config).visual_id))


def media_token_ids(config: PretrainedConfig) -> tuple[int, ...]:
    """Return the ids that must never be sampled: a sampled placeholder has no features behind it.

    For a family with `marks`, `config` must come from a model directory: its tokenizer knows them.
    """
    ids = set(_mark_ids(config.name_or_path, family_of(config).marks))
    for name in MEDIA_FIELDS:
        value = getattr(config, name, None)
        if value is not None:
            ids.add(int(value))
    return tuple(sorted(ids))


@lru_cache
def _mark_ids(path: str, marks: tuple[str, ...]) -> tuple[int, ...]:
    if not marks:
        return ()
    if not path:
        raise ConfigError(
            "a configuration read from a model directory",
            "one made in memory",
            "Load the configuration with from_pretrained(path).",
        )
    # cached: a tokenizer takes a second to load, and every model and encoder of a process asks for these ids
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return tuple(token_id(tokenizer, mark) for mark in marks)


def token_id(tokenizer, mark: str) -> int:
    """Return the id of a media token. Raises ConfigError if the tokenizer does not know it as one token."""
    id_ = tokenizer.convert_tokens_to_ids(mark)
    if id_ is None or id_ == tokenizer.unk_token_id:
        raise ConfigError(
            f"a tokenizer with the token {mark!r}", "none", "Correct the tokenizer in the model directory."
        )
    return int(id_)
