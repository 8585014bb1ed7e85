"""Rows of other tools keep all their media and turns, or are bad with the field's name."""

from __future__ import annotations

import base64
import json
import re

import pytest
from odd_files import PAIR, data, llava, make_world, pds, reward_pair, rows_of
from preference_rows import picture

from rlaif.data.files import write_rows
from rlaif.data.read import read_records

TURNS = [{"role": "user", "content": "What rolls?"}, {"role": "assistant", "content": "An orange."}]
MARKED = [{"role": "user", "content": "<video>What rolls?"}, TURNS[1]]
SFT = {"id": "s", "messages": TURNS}


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


@pytest.mark.parametrize(
    ("row", "to", "video"),
    [
        (pds(video="v.mp4"), "rlaif", "v.mp4"),
        (pds(videos=["v.mp4"]), "rlaif", "v.mp4"),
        (pds("<image>What?", image="img.jpg"), "rlaif", "img.jpg"),
        (pds(videos=[["f/0.jpg", "f/1.webp"]]), "rlaif", "f"),
        (pds("What rolls?", video="f"), "rlaif", "f"),
        (reward_pair("<video>\nWhat?", video="v.mp4"), "rlaif", "v.mp4"),
        (reward_pair(images=["f/0.jpg", "f/1.webp"]), "rlaif", "f"),
        (llava(video="v.mp4"), "sft", "v.mp4"),
        (llava("<video>\nWhat?", video="v.mp4", data_source="x"), "sft", "v.mp4"),
        (llava("<image><image>\nWhat?", image=["f/0.jpg", "f/1.webp"]), "sft", "f"),
        (llava("What is a colour?"), "sft", None),
        (llava("What is a colour?", image=None, video=""), "sft", None),
        (SFT, "sft", None),
        (SFT | {"video": "v.mp4"}, "sft", "v.mp4"),
    ],
)
def test_media_are_kept_and_the_row_comes_back(world, capsys, row, to, video):
    write_rows(world / "in.json", [row])
    code, out, err = data(capsys, "check", world / "in.json")
    assert code == 0, out + err
    assert f"videos named    {0 if video is None else 1}" in out
    assert data(capsys, "convert", world / "in.json", world / "ours.jsonl", "--to", to)[0] == 0
    (ours,) = rows_of(world / "ours.jsonl")
    assert ours.get("video") == video
    texts = json.dumps({name: value for name, value in ours.items() if name != "native"})
    assert "<video>" not in texts and "<image>" not in texts
    kind = "pairs" if to == "rlaif" else "conversations"
    assert len(read_records(world / "ours.jsonl", world, kind)[0]) == 1
    assert data(capsys, "check", world / "ours.jsonl")[0] == 0
    name = re.search(r"^format +(\S+)", out, re.MULTILINE)[1]
    assert data(capsys, "convert", world / "ours.jsonl", world / "back.json", "--to", name)[0] == 0
    assert rows_of(world / "back.json") == [row]


def test_a_conversation_of_our_own_without_a_video_becomes_one_of_llava(world, capsys):
    write_rows(world / "in.jsonl", [SFT])
    assert data(capsys, "convert", world / "in.jsonl", world / "out.json", "--to", "vlm_rlaif_sft")[0] == 0
    assert rows_of(world / "out.json") == [{"id": "s", "conversations": llava("What rolls?")["conversations"]}]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (SFT | {"messages": MARKED, "videos": ["v.mp4"]}, "videos"),
        (SFT | {"messages": MARKED, "videos": ["v.mp4"], "rejected_response": "A coin."}, "videos, rejected_response"),
        (SFT | {"video": "v.mp4", "rejected_messages": TURNS}, "rejected_messages"),
        (SFT | {"video": "v.mp4", "label": False}, "label"),
        (SFT | {"video": "v.mp4", "kto_tag": False}, "kto_tag"),
        (SFT | {"image": "img.jpg"}, "image"),
        (SFT | {"messages": [TURNS[0], TURNS[1] | {"loss": False}]}, "messages.loss"),
        (SFT | {"messages": MARKED}, "<video>"),
        (SFT | {"video": "v.mp4", "messages": MARKED}, "<video>"),
        (PAIR | {"images": ["img.jpg"]}, "images"),
        (PAIR | {"question": "<video>What?"}, "<video>"),
        (PAIR | {"chosen": "It is <|video_pad|> here"}, "<|video_pad|>"),
        (PAIR | {"rejected_video_path": "v.mp4"}, "rejected_video_path"),
        ({"prompt_id": "p", "video": "v.mp4", "question": "q", "chosen": "a", "rejected": "b"}, "chosen, rejected"),
        ({"prompt_id": "p", "video": "v.mp4", "question": "<image>\nq"}, "<image>"),
        (pds(), "<video>"),
        (pds(clip="v.mp4"), "clip"),
        (pds("<image>What?", image="img.jpg", video="v.mp4"), "video, image"),
        (pds("<image><image>What?", image="img.jpg"), "2 placeholders"),
        (pds("<video>What?", image="img.jpg"), "only `image`"),
        (pds(videos=["v.mp4", "w.mp4"]), "2 videos"),
        (pds("<audio>What?", video="v.mp4"), "<audio>"),
        (pds("<|vision_start|>What?", video="v.mp4"), "<|vision_start|>"),
        (llava(), "<image>"),
        (llava(video="v.mp4", rejected="A coin."), "rejected"),
        (llava(video="v.mp4", system="Be brief."), "system"),
        (llava(video="v.mp4", output_1={"value": "x"}), "output_1"),
        (reward_pair(), "<image>"),
        (reward_pair(video={"path": 3}), "video"),
    ],
)
def test_rows_that_would_be_misread_are_bad_and_named(world, capsys, row, named):
    good = {name: value for name, value in row.items() if name in ("id", "pair_id", "prompt_id")}
    write_rows(world / "in.jsonl", [row])
    code, out, _ = data(capsys, "check", world / "in.jsonl")
    assert (
        code == 1 and "0 of 1 rows kept" in out and named in out and f"line 1, id {next(iter(good.values()))!r}" in out
    )
    kind = {"pairs": "rlaif", "prompts": "prompts", "conversations": "sft"}
    to = next(ours for name, ours in kind.items() if f"\n{name} " in out)
    code, _, err = data(capsys, "convert", world / "in.jsonl", world / "out.jsonl", "--to", to)
    assert code == 1 and named in err and not (world / "out.jsonl").exists()


def test_images_inside_rows_are_stored_or_bad_in_check_and_convert_alike(world, capsys):
    uri = "data:image/jpeg;base64," + base64.b64encode(picture(3, "JPEG")).decode()
    noise = base64.b64encode(bytes(range(256)) * 12).decode()
    damaged = "data:image/jpeg;base64," + base64.b64encode(b"no image" * 400).decode()
    images = [uri, noise, damaged, "data:image/png;base64,?", "data:image/png,abc", "empty.jpg"]
    rows = [pds("<image>What?", image=image) | {"id": str(n)} for n, image in enumerate(images)]
    write_rows(world / "in.json", rows)
    code, out, _ = data(capsys, "check", world / "in.json")
    assert code == 1 and "1 of 6 rows kept" in out and max(map(len, out.split())) < 250
    code, _, err = data(capsys, "convert", world / "in.json", world / "out.jsonl", "--to", "rlaif")
    assert code == 1 and "--media DIR" in err
    media = ("--media", world / "media")
    code, out, err = data(capsys, "convert", world / "in.json", world / "out.jsonl", "--to", "rlaif", *media)
    assert code == 0 and "2 of 6 rows kept" in out and max(map(len, (out + err).split())) < 250
    first, _ = rows_of(world / "out.jsonl")
    assert first["video"].startswith("media/") and "base64" not in json.dumps(first)
    assert [path.read_bytes() for path in (world / "media").rglob("*.jpg")] == [picture(3, "JPEG")]


def test_webp_frames_are_frames_and_damaged_ones_are_never_joined(world, capsys):
    names = {"good": ["f/0.jpg", "f/1.webp"], "empty": ["f/0.jpg", "empty.jpg"], "text": ["f/0.jpg", "notes.txt"]}
    for name, frames in names.items():
        write_rows(world / "in.json", [reward_pair(images=frames)])
        code = data(capsys, "check", world / "in.json")[0]
        out = world / f"{name}.jsonl"
        assert data(capsys, "convert", world / "in.json", out, "--to", "rlaif", "--media", world / "media")[0] == code
        assert code == (0 if name == "good" else 1) and out.exists() == (name == "good")
    assert data(capsys, "check", world / "good.jsonl")[0] == 0


def test_the_format_is_what_most_rows_are(world, capsys):
    strange = [{}, {"note": 1}, llava(video="v.mp4"), pds(video="v.mp4")]
    write_rows(world / "in.jsonl", [*strange, *(PAIR | {"pair_id": f"k{n}"} for n in range(3))])
    code, out, _ = data(capsys, "check", world / "in.jsonl")
    assert code == 1 and "3 of 7 rows kept, 4 missing field" in out and f"{'format':15} rlaif" in out
    assert "line 1: " in out


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MARKED, "rejected_response": "A coin.", "videos": ["v.mp4"]},
        {"prompt": "q", "chosen": "a", "rejected": "b", "video": "v.mp4"},
        {"conversations": llava()["conversations"], "chosen": {"from": "gpt", "value": "x"}, "videos": ["v.mp4"]},
    ],
)
def test_a_format_that_is_not_read_is_refused_with_what_to_do(world, capsys, row):
    write_rows(world / "in.jsonl", [row])
    code, _, err = data(capsys, "check", world / "in.jsonl")
    assert code == 1 and ", ".join(row) in err and "--format" in err and "--map" not in err
