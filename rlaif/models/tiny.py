"""A from-scratch Qwen2.5-VL of about one million parameters that learns to see small videos within minutes on a CPU.

The sizes, the initialisation and the pixel normalisation are measured choices. With the default init (.02) shape and
motion stay near chance at this width; one temporal patch over all eight frames learns motion fastest; and a mean that
puts dark backgrounds near zero (not at -2, as the usual means do) is learned in a third of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

SPECIAL = (
    "<|pad|>",
    "<|unk|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ROLES = ("system", "user", "assistant")
PATCH, MERGE = 7, 2


@dataclass(frozen=True)
class Size:
    """Widths and depths of language model and tower; head size is `hidden / heads`."""

    hidden: int = 128
    intermediate: int = 256
    layers: int = 3
    heads: int = 4
    vision_hidden: int = 96
    vision_intermediate: int = 192
    vision_layers: int = 3
    vision_heads: int = 3
    frames_per_patch: int = 8
    """Frames that one visual token spans."""


TINY = Size()
"""1.1 million parameters; eight 56x56 frames become 16 visual tokens."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "<|im_end|>{{ '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>{{ 'assistant\\n' }}{%- endif -%}"
)


def build_tiny(
    out_dir: Path | str, words: Sequence[str], seed: int = 0, max_positions: int = 2048, size: Size = TINY
) -> Path:
    """Write model, tokenizer, processor and chat template into `out_dir` and return it.

    `words` is the vocabulary (lower case; punctuation marks are words of their own). Frames whose sides are multiples
    of 14 pixels are not resized up to 112x112.
    """
    out_dir = Path(out_dir)
    processor = build_processor(words, max_positions, size)
    ids = {name: processor.tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    model = build_model(len(processor.tokenizer), ids, seed, max_positions, size)
    model.save_pretrained(out_dir)
    processor.save_pretrained(out_dir)
    return out_dir


def build_tokenizer(words: Sequence[str], max_positions: int = 2048):
    """Return a word-level tokenizer: text is lower-cased and split at spaces and punctuation, decoding joins with spaces."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = dict.fromkeys([*ROLES, *map(str.lower, words)])
    ids = {word: id_ for id_, word in enumerate([*SPECIAL, *plain])}
    core = Tokenizer(models.WordLevel(ids, unk_token="<|unk|>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[name for name in SPECIAL if name not in ("<|pad|>", "<|unk|>", "<|im_end|>")],
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    )


def build_processor(words: Sequence[str], max_positions: int = 2048, size: Size = TINY):
    """Return tokenizer, video and image processor and chat template as one Qwen2_5_VLProcessor."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    shared = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": size.frames_per_patch,
        "size": {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 112 * 112},
        "image_mean": [0.12] * 3,
        "image_std": [0.3] * 3,
    }
    frames = {"min_frames": size.frames_per_patch, "max_frames": 64}
    video = Qwen2VLVideoProcessor(**shared, **frames, do_sample_frames=False, cap_pixels_per_frame=False)
    tokenizer = build_tokenizer(words, max_positions)
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**shared),
        tokenizer=tokenizer,
        video_processor=video,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(vocabulary: int, ids: dict[str, int], seed: int, max_positions: int, size: Size = TINY):
    """Return a randomly initialised model in float32; the same seed gives the same weights."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    config = build_config(vocabulary, ids, max_positions, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config).float().eval()
        rescale(model, depth=config.text_config.num_hidden_layers)
    eos, pad = ids["<|im_end|>"], ids["<|pad|>"]
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = eos, pad
    return model


@torch.no_grad()
def rescale(model, depth: int) -> None:
    """Correct the uniform initializer_range in two places."""
    # it suits fan-ins near 150; a patch stack has over 1000 inputs and would saturate the tower
    patch = model.model.visual.patch_embed.proj.weight
    fan_in = patch[0].numel()
    torch.nn.init.normal_(patch, std=1.0 / math.sqrt(fan_in))
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")):
            weight *= 1 / math.sqrt(2 * depth)  # each layer adds twice to the residual stream (GPT-2's rule)


def build_config(vocabulary: int, ids: dict[str, int], max_positions: int, size: Size = TINY):
    """Return the architecture, with full attention everywhere."""
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        text_config=_text_options(vocabulary, ids, max_positions, size),
        vision_config=_vision_options(size),
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        initializer_range=_init_range(size),
        dtype="float32",
    )


def _init_range(size: Size) -> float:
    # .08 was measured at a width of 128; this keeps the variance of sums over other widths
    return 0.08 * (128 / size.hidden) ** 0.5


def _text_options(vocabulary: int, ids: dict[str, int], max_positions: int, size: Size) -> dict:
    head = size.hidden // size.heads
    return {
        "vocab_size": vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": max_positions,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [head // 8, head * 3 // 16, head * 3 // 16],
        },
        "initializer_range": _init_range(size),
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|pad|>"],
    }


def _vision_options(size: Size) -> dict:
    depth = size.vision_layers
    return {
        "depth": depth,
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_intermediate,
        "num_heads": size.vision_heads,
        "out_hidden_size": size.hidden,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": size.frames_per_patch,
        "tokens_per_second": 1,
        "window_size": 112,
        "fullatt_block_indexes": list(range(depth)),
        "initializer_range": _init_range(size),
    }
