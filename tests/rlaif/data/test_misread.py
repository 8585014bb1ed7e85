"""Fields and marks that a reader would pass over are recognised, and metadata is not taken for them."""

from __future__ import annotations

import pytest

from rlaif.data.misread import media_marks, misread
from rlaif.models.family import FAMILIES

TURN = {"role": "user", "content": "What?"}
USED = ("id", "video", "messages")
MISREAD = [
    ({"videos": ["v.mp4"]}, "videos"),
    ({"image": "a.jpg"}, "image"),
    ({"images": ["a.jpg"]}, "images"),
    ({"images": [{"bytes": b"x", "path": None}]}, "images"),
    ({"audios": ["a.wav"]}, "audios"),
    ({"video_path": "v.mp4"}, "video_path"),
    ({"imageUrl": "https://host/a.jpg"}, "imageUrl"),
    ({"rejected_images": ["a.jpg"]}, "rejected_images"),
    ({"clip_w": "clips/w"}, "clip_w"),
    ({"rejected": "No."}, "rejected"),
    ({"rejected_2": "No."}, "rejected_2"),
    ({"rejected_response": "No."}, "rejected_response"),
    ({"rejected_messages": [TURN]}, "rejected_messages"),
    ({"chosen": {"from": "gpt", "value": "Yes."}}, "chosen"),
    ({"label": False}, "label"),
    ({"kto_tag": True}, "kto_tag"),
    ({"ranking": [2, 1]}, "ranking"),
    ({"output_1": {"value": "No."}}, "output_1"),
    ({"history": [["Who?", "A man."]]}, "history"),
    ({"system": "Be brief."}, "system"),
    ({"videos": ["v.mp4"], "rejected_response": "No."}, "videos, rejected_response"),
    ({"messages": [TURN | {"images": ["a.jpg"]}]}, "messages.images"),
    ({"messages": [TURN | {"weight": 0}]}, "messages.weight"),
    ({"messages": [TURN | {"loss": False}]}, "messages.loss"),
    ({"messages": [TURN | {"loss_scale": 0.0}]}, "messages.loss_scale"),
    ({"messages": [TURN | {"tool_calls": [{"function": {"name": "look"}}]}]}, "messages.tool_calls"),
    ({"messages": [TURN | {"reasoning_content": "A man, so..."}]}, "messages.reasoning_content"),
    ({"candidates": ["Yes.", "No."]}, "candidates"),
    ({"video_start": 1.0, "video_end": 2.0}, "video_start, video_end"),
    ({"file_name": "clips/v.mp4"}, "file_name"),
]
FINE = [
    {"video_id": "v1", "image_size": [336, 336], "num_frames": 8, "frames": 8, "fps": 2.0},
    {"frames": [0, 4, 8], "clip": [0.5, 3.5], "videos": 3},
    {"source": "webvid", "data_source": "x", "src_data": "anet", "note": "an image of a cat", "duration": 3.5},
    {"chosen_score": 5, "rejected_score": 2, "score": 0.5, "labels": ["cat"], "split": "train"},
    {"videos": [], "images": None, "audio": "", "rejected": None, "label": None, "system": ""},
    {"video": "v.mp4", "original": "download/v.mp4"},
    {"messages": [TURN | {"weight": 1, "name": "user-1", "loss": True, "images": None}]},
    {"messages": [TURN | {"tool_calls": None, "refusal": None, "reasoning_content": "", "loss_scale": 1.0}]},
]


@pytest.mark.parametrize(("more", "named"), MISREAD)
def test_a_field_that_would_be_lost_is_named(more, named):
    assert misread({"id": "a", "messages": [TURN]} | more, USED).startswith(f"{named}: not used by this format")


@pytest.mark.parametrize("more", FINE)
def test_metadata_fields_are_not_misread(more):
    assert misread({"id": "a", "messages": [TURN]} | more, USED) is None


def test_used_fields_are_not_misread_and_long_names_are_cut():
    assert misread({"images": ["a.jpg"], "rejected": "No."}, ("images", "rejected")) is None
    assert len(misread({"_".join(["video"] * 1000): "v.mp4"}, ())) < 200


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_marks_of_every_family_are_recognised(family):
    marks = [family.placeholder, *family.marks]
    assert media_marks("".join(f"a {mark} b" for mark in marks)) == marks


@pytest.mark.parametrize(
    "mark",
    [
        "<image>",
        "<video>",
        "<audio>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<IMG_CONTEXT>",
        "<img>",
        "</img>",
        "<image_soft_token>",
        "<start_of_image>",
        "<end_of_image>",
        "<ImageHere>",
        "<|image_1|>",
        "<|image|>",
        "<image_placeholder>",
        "<Image>",
        "<im_patch>",
        "<im_start>",
        "<vid_start>",
        "<vi_frame_start>",
        "<fake_token_around_image>",
        "<global-img>",
        "[IMG]",
        "[IMG_END]",
        "<|begin_of_video|>",
        "<|media_pad|>",
        "<|AUDIO|>",
        "<|audio_bos|>",
        "</image>",
    ]
    + ["<image 1>"],
)
def test_marks_of_other_tools_are_recognised(mark):
    assert media_marks(f"Look: {mark}\nWhat?") == [mark]


@pytest.mark.parametrize(
    "text",
    [
        "a video of an image",
        "<b>bold</b>",
        "x < image > y",
        "<|im_start|>user<|im_end|>",
        "<image_caption>",
        "[image]",
        "1 <2> 3",
    ],
)
def test_ordinary_text_has_no_marks(text):
    assert media_marks(text) == []
