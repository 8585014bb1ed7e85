"""Positions by the engine's rule, names, and tokens that must not be sampled."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, BertConfig

from rlaif.errors import ConfigError
from rlaif.models.encode import Encoder
from rlaif.models.family import (
    FAMILIES,
    family_of,
    media_token_ids,
    qwen2_positions,
    qwen3_positions,
    token_id,
    visual_token_id,
)

VIDEO, TEXT = 9, 1


def config(merge=2, tokens_per_second=2):
    return SimpleNamespace(
        video_token_id=VIDEO,
        vision_config=SimpleNamespace(spatial_merge_size=merge, tokens_per_second=tokens_per_second),
    )


def ids(before, cells, after) -> np.ndarray:
    return np.array([TEXT] * before + [VIDEO] * cells + [TEXT] * after)


def test_positions_by_hand():
    """Compute the positions of a grid of 2 x 4 cells at 1.5 s a step and 2 positions a second; text resumes after the largest."""
    features = {"video_grid_thw": np.array([[2, 4, 8]]), "second_per_grid_ts": np.array([1.5], np.float32)}
    positions = qwen2_positions(ids(2, 16, 3), features, config())
    assert positions[0].tolist() == [0, 1] + [2] * 8 + [5] * 8 + [6, 7, 8]
    assert positions[1].tolist() == [0, 1] + ([2] * 4 + [3] * 4) * 2 + [6, 7, 8]
    assert positions[2].tolist() == [0, 1] + [2, 3, 4, 5] * 4 + [6, 7, 8]


def test_text_resumes_after_the_widest_axis():
    features = {"video_grid_thw": np.array([[1, 2, 12]])}
    positions = qwen2_positions(ids(1, 6, 2), features, config())
    assert positions[2].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert positions[0].tolist() == [0, 1, 1, 1, 1, 1, 1, 7, 8]


def test_positions_of_text_alone():
    assert qwen2_positions(ids(4, 0, 0), {}, config()).tolist() == [[0, 1, 2, 3]] * 3


CASES = [
    (1, 4, 4, 1.0, 2),
    (4, 4, 8, 1.5, 2),
    (30, 2, 2, 0.08, 2),
    (31, 4, 2, 0.7, 2),
    (12, 6, 4, 3.43, 25),
    (6, 4, 4, None, 4),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_positions_are_the_engines(dtype, qwen_path, noise):
    """Compare with vLLM's own function, on seconds that went through its rounding to the model's dtype."""
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Served

    for t, h, w, seconds, rate in CASES:
        rounded = None if seconds is None else torch.tensor([seconds]).to(getattr(torch, dtype))
        features = {"video_grid_thw": np.array([[t, h, w]])}
        data = {"video_grid_thw": SimpleNamespace(data=torch.tensor([t, h, w]))}
        if rounded is not None:
            data["second_per_grid_ts"] = SimpleNamespace(data=rounded[0])
            encoder = Encoder(qwen_path, noise(), dtype=dtype)
            features["second_per_grid_ts"] = encoder.videos.as_engine_holds("second_per_grid_ts", [seconds])
        cells = t * (h // 2) * (w // 2)
        feature = SimpleNamespace(mm_position=SimpleNamespace(offset=5), data=data, modality="video")
        served = SimpleNamespace(config=config(2, rate))
        served.iter_mm_grid_thw = lambda features, served=served: Served.iter_mm_grid_thw(served, features)
        expected, _ = Served.get_mrope_input_positions(served, ids(5, cells, 7).tolist(), [feature])
        assert np.array_equal(qwen2_positions(ids(5, cells, 7), features, config(2, rate)), expected.numpy())


def test_rounded_times_move_a_position():
    """Show why times are rounded: 30 steps of 0.08 s are not 30 steps of 0.080078125 s."""
    features = {"video_grid_thw": np.array([[30, 2, 2]])}
    exact, half = (
        qwen2_positions(ids(0, 30, 1), features | {"second_per_grid_ts": np.array([seconds])}, config())
        for seconds in (np.float64(0.08), np.float32(0.08))
    )
    assert (exact[0, 25], half[0, 25]) == (4, 3)


def test_positions_with_a_time_before_every_step():
    """Compute Qwen3-VL's positions of <time> <start> 2 x 3 cells <end>, twice; each block resumes after the text before it."""
    positions = qwen3_positions(
        np.array([TEXT, TEXT, *[VIDEO] * 6, TEXT, TEXT, *[VIDEO] * 6, TEXT]),
        {"video_grid_thw": np.array([[2, 4, 6]])},
        config(),
    )
    assert positions[0].tolist() == [0, 1] + [2] * 6 + [5, 6] + [7] * 6 + [10]
    assert positions[1].tolist() == [0, 1] + [2] * 3 + [3] * 3 + [5, 6] + [7] * 3 + [8] * 3 + [10]
    assert positions[2].tolist() == [0, 1] + [2, 3, 4] * 2 + [5, 6] + [7, 8, 9] * 2 + [10]
    assert qwen3_positions(ids(4, 0, 0), {}, config()).tolist() == [[0, 1, 2, 3]] * 3


def test_engine_name_maps_llava_prefixes():
    llava, qwen = FAMILIES["llava_next_video"], FAMILIES["qwen2_5_vl"]
    assert llava.engine_name("model.vision_tower.x") == "model.vision_tower.vision_model.x"
    assert llava.engine_name("model.language_model.x") == qwen.engine_name("model.language_model.x")
    assert qwen.engine_name("model.visual.x") == "model.visual.x"


def test_unknown_family_error_lists_what_to_supply():
    with pytest.raises(ConfigError) as error:
        family_of(BertConfig())
    assert "llava_next_video" in error.value.expected and "bert" in error.value.found
    for expected in (
        "position ids",
        "placeholder",
        "id of one visual position",
        "tower",
        "projector",
        "names",
        "adapters",
    ):
        assert expected in error.value.fix
    page = next(word for word in error.value.fix.split() if word.startswith("docs/"))
    assert (Path(__file__).parents[3] / page).is_file()


def test_every_family_is_in_the_documentation():
    page = (Path(__file__).parents[3] / "docs" / "families.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(rows) == set(FAMILIES)
    for name, row in rows.items():
        assert ("| yes |" in row) == FAMILIES[name].adapters


@pytest.mark.parametrize("family", FAMILIES)
def test_media_tokens_cover_placeholders_and_their_expansion(family, path_of):
    """List the tokens of a video or an image before and after their expansion; they are never sampled."""
    path = path_of(family)
    config, tokenizer = AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    names = {
        "qwen": ("<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"),
        "llava": ("<video>", "<image>"),
        "internvl": ("<video>", "<IMG_CONTEXT>", "<img>", "</img>"),
    }[next(kind for kind in ("qwen", "llava", "internvl") if family.startswith(kind))]
    assert media_token_ids(config) == tuple(sorted(tokenizer.convert_tokens_to_ids(list(names))))
    visual = "<IMG_CONTEXT>" if family == "internvl" else FAMILIES[family].placeholder
    assert visual_token_id(config) == token_id(tokenizer, visual)
    assert token_id(tokenizer, FAMILIES[family].placeholder) == tokenizer.convert_tokens_to_ids(names[0])


def test_a_tokenizer_without_the_placeholder_is_an_error(qwen):
    with pytest.raises(ConfigError, match="<video>"):
        token_id(qwen.tokenizer, "<video>")
