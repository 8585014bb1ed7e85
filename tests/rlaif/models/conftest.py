"""Tiny models of two families, and videos of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rlaif.errors import DataError
from rlaif.models.encode import Encoder
from rlaif.models.tiny import build_tiny
from rlaif.video.spec import FrameSpec

WORDS = "a red green blue circle square triangle moves left right up down and what do you see describe the video . ? : context".split()
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


class NoiseFrames:
    """Videos of noise: the name decides the pixels; `broken` cannot be decoded."""

    def __init__(self, frames: int = 8, fps: float = 8.0, size: int = 56):
        self.frames, self.fps, self.size = frames, fps, size

    def spec(self, video: str) -> FrameSpec:
        if video == "broken":
            raise DataError("a video that decodes", "garbage", "the file")
        return FrameSpec(
            f"{video:0>64}", tuple(range(0, 3 * self.frames, 3)), self.size, self.size, self.fps, 3 * self.frames
        )

    def get(self, video: str, spec: FrameSpec) -> np.ndarray:
        shape = (self.frames, self.size, self.size, 3)
        frames = np.random.default_rng([ord(letter) for letter in video]).integers(0, 255, shape, dtype=np.uint8)
        frames.setflags(write=False)
        return frames


@pytest.fixture(scope="session")
def noise():
    return NoiseFrames


@pytest.fixture(scope="session")
def qwen_path(tmp_path_factory) -> str:
    return str(build_tiny(tmp_path_factory.mktemp("qwen"), WORDS, seed=3))


@pytest.fixture(scope="session")
def llava_path(tmp_path_factory) -> str:
    return str(build_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="session")
def qwen(qwen_path) -> Encoder:
    return Encoder(qwen_path, NoiseFrames())


@pytest.fixture(scope="session")
def llava(llava_path) -> Encoder:
    return Encoder(llava_path, NoiseFrames())


@pytest.fixture(params=["qwen", "llava"])
def encoder(request) -> Encoder:
    """Each family in turn."""
    return request.getfixturevalue(request.param)


def build_llava(folder: Path) -> Path:
    """A random LLaVA-NeXT-Video whose tokenizer begins every text with a begin-of-sequence token, as Llama's does."""
    from transformers import (
        LlavaNextImageProcessor,
        LlavaNextVideoConfig,
        LlavaNextVideoForConditionalGeneration,
        LlavaNextVideoProcessor,
        LlavaNextVideoVideoProcessor,
    )

    tokenizer = llama_like_tokenizer()
    pads = {name: tokenizer.convert_tokens_to_ids(f"<{name}>") for name in ("image", "video")}
    sizes = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    processor = LlavaNextVideoProcessor(
        tokenizer=tokenizer,
        image_processor=LlavaNextImageProcessor(**sizes, image_grid_pinpoints=[[56, 112]]),
        video_processor=LlavaNextVideoVideoProcessor(**sizes),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    shared = {"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.1}
    config = LlavaNextVideoConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "image_size": 56,
            "patch_size": 7,
            "hidden_size": 32,
            "intermediate_size": 64,
            **shared,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "max_position_embeddings": 1024,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **shared,
        },
        image_grid_pinpoints=[[56, 112]],
        image_token_index=pads["image"],
        video_token_index=pads["video"],
    )
    torch.manual_seed(0)
    LlavaNextVideoForConditionalGeneration(config).float().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def llama_like_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "<video>"]
    words = {word: i for i, word in enumerate([*special, "user", "assistant", "system", *WORDS])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words["<s>"])])
    named = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=special[4:], **named)
