"""Build tiny random models of every family without a hub, with the family's processor and a word-level tokenizer.

`build(family, folder)` writes a directory as on the hub: vLLM serves it and transformers loads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from rlaif.models.tiny import CHAT_TEMPLATE, SPECIAL, build_tokenizer
from rlaif.video.spec import FrameSpec

WORDS = ["a", "red", "green", "blue", "circle", "square", "triangle", "moves", "left", "right", "up", "down", "and"]
WORDS += ["what", "do", "you", "see", "describe", "the", "video", ".", "?", ":", "context"]
TIMES = [*"0123456789", "<", ">", "seconds", *(f"Frame{number}" for number in range(1, 17))]
"""Words that Qwen3-VL and InternVL put between frames."""
TURNS = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
SIDE, PATCH, HIDDEN = 56, 7, 64
LAYERS = {"num_hidden_layers": 2, "initializer_range": 0.1}
SIZE = {"height": SIDE, "width": SIDE}


class NoiseFrames:
    """Videos of noise, wider than high, with more grid steps than columns, at times that are no whole seconds.

    The name decides the pixels.
    """

    def __init__(self, frames: int = 16, height: int = 56, width: int = 84, fps: float = 10.0):
        self.shape, self.fps = (frames, height, width, 3), fps

    def spec(self, video: str) -> FrameSpec:
        """Return the spec of every third frame of a video."""
        frames, height, width, _ = self.shape
        total = 3 * frames
        return FrameSpec(f"{video:0>64}", tuple(range(0, total, 3)), height, width, self.fps, total)

    def get(self, video: str, spec: FrameSpec) -> np.ndarray:
        """Return the frames: uint8 [T, H, W, 3]."""
        generator = np.random.default_rng([ord(letter) for letter in video])
        return generator.integers(0, 255, self.shape, dtype=np.uint8)


def build(family: str, folder: Path, tied: bool = False, seed: int = 0) -> Path:
    """Write a random model in float32, its tokenizer and its processor; the same seed gives the same weights."""
    model_class, config, processor = BUILDERS[family](tied)
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = tied
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).float()
        for name, weight in model.named_parameters():
            _draw_weight(name, weight)
    # Another mean than the videos': a test fails if it is used for them (vLLM's device-side normalisation does that).
    processor.image_processor.image_mean = [0.3] * 3
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    rename_as_on_the_hub(folder)
    return folder


def _draw_weight(name: str, weight: torch.nn.Parameter) -> None:
    if "patch_embed" in name and weight.ndim > 3:
        # A patch has over 100 inputs: the init for others would saturate.
        torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    elif weight.ndim == 1 and "norm" not in name:
        # Biases and class tokens start at zero, and would test nothing.
        torch.nn.init.normal_(weight, std=0.1)


def rename_as_on_the_hub(folder: Path) -> None:
    """Rename the tower's weights as in published LLaVA checkpoints.

    Those have `vision_tower.vision_model.`, which vLLM needs; a model built from a configuration is saved without.
    """
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    if any("vision_tower.embeddings.patch_embedding." in name for name in tensors):
        renamed = {}
        for name, tensor in tensors.items():
            renamed[re.sub(r"vision_tower\.", "vision_tower.vision_model.", name)] = tensor
        save_file(renamed, file, metadata={"format": "pt"})


def tokenizer_of(special: Sequence[str], named: dict[str, str], begins: bool = False):
    """Return a tokenizer of words at spaces and punctuation that keeps case.

    named: attribute -> special token. begins: a text starts with <s>.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ordinary = ("pad_token", "unk_token", "bos_token", "eos_token")
    vocabulary = [*special, "user", "assistant", "system", *WORDS, *TIMES]
    words = {word: i for i, word in enumerate(vocabulary)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if begins:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words["<s>"])])
    marks = {name: token for name, token in named.items() if name not in ordinary}
    rest = [token for token in special if token not in named.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=2048,
        extra_special_tokens=marks or rest,
        **{name: token for name, token in named.items() if name in ordinary},
    )


def text_config(tokenizer, tied: bool, **more) -> dict:
    """Return the configuration of a language model."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": HIDDEN // 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **LAYERS,
        **more,
    }


# ---------------------------------------------------------------- Qwen


def qwen(version: str, vision: dict, rope: dict, video_processor: str) -> Callable:
    """Return the builder of a Qwen-VL: grids of 8 steps x 4 x 6 tokens, steps of two frames."""

    def parts(tied: bool):
        import transformers

        tokenizer = build_tokenizer([*WORDS, *TIMES])
        ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
        shared = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2}
        pixels = {"shortest_edge": 14 * 14, "longest_edge": 16 * 112 * 112}
        videos = getattr(transformers, video_processor)(
            **shared, size=pixels, do_sample_frames=False, cap_pixels_per_frame=False
        )
        processor = getattr(transformers, f"{version}Processor")(
            image_processor=transformers.Qwen2VLImageProcessor(**shared, size=pixels),
            tokenizer=tokenizer,
            video_processor=videos,
            chat_template=CHAT_TEMPLATE,
        )
        rope_parameters = {"rope_type": "default", "rope_theta": 1e4, **rope}
        config = getattr(transformers, f"{version}Config")(
            text_config=text_config(tokenizer, tied, rope_parameters=rope_parameters),
            vision_config={
                "depth": 2,
                "num_heads": 2,
                "patch_size": PATCH,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "initializer_range": 0.1,
                **vision,
            },
            tie_word_embeddings=tied,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
        return getattr(transformers, f"{version}ForConditionalGeneration"), config, processor

    return parts


SECTIONS = {"mrope_section": [4, 6, 6]}
QWEN2 = {"embed_dim": 64, "hidden_size": HIDDEN, "mlp_ratio": 2}
QWEN25 = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "out_hidden_size": HIDDEN,
    "window_size": 28,
    "fullatt_block_indexes": [1],
    "tokens_per_second": 4,
}
QWEN3 = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "out_hidden_size": HIDDEN,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0],
}


# ---------------------------------------------------------------- LLaVA and InternVL


def llava_tokenizer():
    named = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return tokenizer_of([*named.values(), "<image>", "<video>"], named, begins=True)


def llava_next_video(tied: bool):
    import transformers

    tokenizer = llava_tokenizer()
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": SIZE}
    processor = transformers.LlavaNextVideoProcessor(
        tokenizer=tokenizer,
        image_processor=transformers.LlavaNextImageProcessor(**sizes, image_grid_pinpoints=[[SIDE, 2 * SIDE]]),
        video_processor=transformers.LlavaNextVideoVideoProcessor(**sizes),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TURNS,
    )
    config = transformers.LlavaNextVideoConfig(
        vision_config=tower("clip_vision_model"),
        text_config={"model_type": "llama", **text_config(tokenizer, tied)},
        image_grid_pinpoints=[[SIDE, 2 * SIDE]],
        **indices(tokenizer),
    )
    return transformers.LlavaNextVideoForConditionalGeneration, config, processor


def llava_onevision(tied: bool):
    import transformers

    tokenizer = llava_tokenizer()
    processor = transformers.LlavaOnevisionProcessor(
        tokenizer=tokenizer,
        image_processor=transformers.LlavaOnevisionImageProcessor(size=SIZE, image_grid_pinpoints=[[SIDE, SIDE]]),
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=SIZE),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=TURNS,
    )
    config = transformers.LlavaOnevisionConfig(
        vision_config=tower("siglip_vision_model") | {"vision_use_head": False},
        text_config={"model_type": "qwen2", **text_config(tokenizer, tied)},
        image_grid_pinpoints=[[SIDE, SIDE]],
        **indices(tokenizer),
    )
    return transformers.LlavaOnevisionForConditionalGeneration, config, processor


def internvl(tied: bool):
    import transformers

    named = {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "eos_token": "</s>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = tokenizer_of(list(named.values()), named)
    seq_length = (SIDE // PATCH // 2) ** 2
    processor = transformers.InternVLProcessor(
        tokenizer=tokenizer,
        image_processor=transformers.GotOcr2ImageProcessor(size=SIZE),
        video_processor=transformers.InternVLVideoProcessor(size=SIZE),
        image_seq_length=seq_length,
        chat_template=TURNS,
    )
    config = transformers.InternVLConfig(
        vision_config=tower("internvl_vision"),
        text_config={"model_type": "qwen2", **text_config(tokenizer, tied)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=seq_length,
        tie_word_embeddings=tied,
    )
    return transformers.InternVLForConditionalGeneration, config, processor


def tower(model_type: str) -> dict:
    """Return the configuration of a vision tower."""
    return {
        "model_type": model_type,
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        **LAYERS,
    }


def indices(tokenizer) -> dict[str, int]:
    """Return the ids of LLaVA's placeholders."""
    return {
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "video_token_index": tokenizer.convert_tokens_to_ids("<video>"),
    }


BUILDERS: dict[str, Callable] = {
    "qwen2_vl": qwen("Qwen2VL", QWEN2, SECTIONS, "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": qwen("Qwen2_5_VL", QWEN25, SECTIONS, "Qwen2VLVideoProcessor"),
    "qwen3_vl": qwen(
        "Qwen3VL", QWEN3, {"mrope_section": [6, 5, 5], "mrope_interleaved": True}, "Qwen3VLVideoProcessor"
    ),
    "llava_next_video": llava_next_video,
    "llava_onevision": llava_onevision,
    "internvl": internvl,
}
