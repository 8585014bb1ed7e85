"""Rows of other tools that look a little like ours: read as what they are, or refused by the name of the field."""

from __future__ import annotations

import json
import math
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rlaif.cli import main
from rlaif.data.formats.base import Options
from rlaif.data.formats.table import FORMATS
from rlaif.data.media import Media
from rlaif.data.rows import Row, RowFailure

TURNS = [{"from": "human", "value": "What rolls?"}, {"from": "gpt", "value": "An orange."}]
LLAVA = {"id": "7", "conversations": TURNS}
PAIR = {"pair_id": "7", "video": "v.mp4", "question": "What rolls?", "chosen": "An orange.", "rejected": "A coin."}
PROMPT = {"prompt_id": "7", "video": "v.mp4", "question": "What rolls?"}
SFT = {
    "id": "7",
    "video": "v.mp4",
    "messages": [{"role": "user", "content": "What rolls?"}, {"role": "assistant", "content": "An orange."}],
}
SAFESORA = {
    "pair_id": 1,
    "prompt_id": 2,
    "prompt_text": "a dog",
    "video_0": {"video_id": "a", "video_path": "a.mp4"},
    "video_1": {"video_id": "b", "video_path": "b.mp4"},
    "helpfulness": "video_0",
}
OPEN = {"ds_name": "d", "idx": 1, "image": None, "image_path": "a.jpg", "origin_dataset": None, "origin_split": "{}"}
TEXT = {"question": "What?", "chosen": "A cat.", "rejected": "A dog."}


def read(name: str, row: dict, folder) -> object:
    """Return the record of one row, or its `RowFailure`."""
    (record,) = FORMATS[name].read([Row(1, row)], Options(Media(folder, folder / "media")))
    return record


def rlhf_v(**more) -> dict:
    return OPEN | {"text": json.dumps(TEXT | more)}


def in_slot(**more) -> dict:
    return SAFESORA | {"video_0": SAFESORA["video_0"] | more}


MISREAD = [
    # objects that hold a medium in another way, or only a part of it
    ("vlm_rlaif_sft", LLAVA | {"video": {"url": "v.mp4"}}, "video.url"),
    ("vlm_rlaif_sft", LLAVA | {"video": {"path": "v.mp4", "video_start": 1.0}}, "video.video_start"),
    ("vlm_rlaif_sft", LLAVA | {"image": {"bytes": "/9j/4AAQ", "path": "img.jpg"}}, "image.bytes: a str"),
    ("vlm_rlaif_sft", LLAVA | {"images": [{"path": None}]}, "images: not a path"),
    ("vlm_rlaif_sft", LLAVA | {"images": [{}]}, "images: not a path"),
    ("vlm_rlaif_sft", LLAVA | {"images": [{"path": ""}]}, "images: an object without bytes or path"),
    ("vlm_rlaif_sft", LLAVA | {"images": [[{"path": "f/0.jpg"}]]}, "images: not a path"),
    ("vlm_rlaif_sft", LLAVA | {"video": [{"type": "video", "video": "v.mp4"}]}, "video.type"),
    ("vlm_rlaif_sft", LLAVA | {"video": {"path": ["v.mp4"]}}, "video.path: a list"),
    # further media, answers and labels under names that are nearly known
    *[("rlaif", PAIR | {name: "f/0.jpg"}, name) for name in ("video2", "image2", "Images", "imagePath2")],
    *[("rlaif", PAIR | {name: "No."}, name) for name in ("rejected2", "rejected_list", "response_A", "response_C")],
    *[("rlaif", PAIR | {name: "No."}, name) for name in ("answer2", "response_10", "systemPrompt", "System")],
    *[("rlaif", PAIR | {name: "x"}, name) for name in ("system_message", "History", "Label", "kto_label")],
    *[("vlm_rlaif_sft", LLAVA | {name: ["v.mp4"]}, name) for name in ("files", "attachments", "mm_inputs")],
    ("vlm_rlaif_sft", LLAVA | {"visuals": [{"path": "f/0.jpg"}]}, "visuals"),
    ("vlm_rlaif_sft", LLAVA | {"multimodal_data": {"video": "v.mp4"}}, "multimodal_data"),
    ("prompts", PROMPT | {"frames": "clip"}, "frames: clip is not a list of paths"),
    # inside the objects of a row
    ("rlhf_v", rlhf_v(rejected_2="No."), "text.rejected_2"),
    ("rlhf_v", rlhf_v(history=[["Who?", "A man."]]), "text.history"),
    ("rlhf_v", OPEN | {"text": '{"question": NaN}'}, "NaN is not a JSON number"),
    ("rlhf_v", rlhf_v(logps=["a", "b", "c", "d", "e", "f"]), "logps"),
    ("safesora", in_slot(video_start=1.0), "video_0.video_start"),
    ("safesora", in_slot(video_path=None, video_url="http://host/a.mp4"), "video_0.video_url"),
    ("safesora", SAFESORA | {"aesthetics": "video_1"}, "aesthetics"),
    ("safesora", SAFESORA | {"safety": "video_1"}, "safety"),
    # fields of ours that hold something else
    ("rlaif", PAIR | {"native": {"rlaif": 5}}, "native.rlaif"),
    ("rlaif", PAIR | {"judge": "gpt-4"}, "judge: 'gpt-4' is a text"),
    *[("prompts", PROMPT | {"native": value}, "native") for value in ("x", 5, [1], {"vlm_rlaif_rl": 5})],
    *[("sft", SFT | {"native": value}, "native") for value in ("x", {"vlm_rlaif_sft": 5})],
    ("prompts", PROMPT | {"modality": b"video"}, "modality: a value that JSON cannot hold"),
    ("rlaif", PAIR | {"judge": {"p": math.nan}}, "judge: a value that JSON cannot hold"),
]


@pytest.mark.parametrize(("name", "row", "told"), MISREAD)
def test_a_row_that_would_be_misread_is_bad_by_the_name_of_its_field(name, row, told, tmp_path):
    bad = read(name, row, tmp_path)
    assert isinstance(bad, RowFailure) and bad.row.line == 1, bad
    assert told in bad.row.detail


KEPT = [
    ("vlm_rlaif_sft", LLAVA | {"video": {"path": "v.mp4", "bytes": None, "fps": None}}, "video", "v.mp4"),
    ("vlm_rlaif_sft", LLAVA | {"image": {"bytes": None, "path": None}, "video": "v.mp4"}, "video", "v.mp4"),
    ("vlm_rlaif_sft", LLAVA | {"image": math.nan, "video": "v.mp4", "system": math.nan}, "video", "v.mp4"),
    ("prompts", PROMPT | {"captions": None}, "captions", ()),
    ("prompts", PROMPT | {"label": math.nan, "frames": 8}, "question", "What rolls?"),
    ("sft", SFT | {"captions": None, "modality": math.nan}, "video", "v.mp4"),
    ("rlaif", PAIR | {"captions": math.nan}, "captions", ()),
    ("safesora", SAFESORA | {"pair_id": 1.0, "prompt_id": 2.0}, "pair_id", "1"),
]


@pytest.mark.parametrize(("name", "row", "field", "value"), KEPT)
def test_a_gap_of_a_table_costs_no_row(name, row, field, value, tmp_path):
    record = read(name, row, tmp_path)
    assert not isinstance(record, RowFailure), record
    assert getattr(record, field) == value


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("    def f():\n        pass\n", "    def f():\n        pass\n"),
        ("<image>\n  Who?  ", "Who?  "),
        ("Who?\n<image>", "Who?"),
        ("<image>\u200b\nWho?", "Who?"),
    ],
)
def test_only_white_space_at_a_placeholder_goes_with_it(text, bare, tmp_path):
    turns = [{"from": "human", "value": text}, TURNS[1]]
    assert read("vlm_rlaif_sft", LLAVA | {"image": "a.jpg", "conversations": turns}, tmp_path).messages[0][1] == bare


def test_one_medium_has_one_kind_of_placeholder(tmp_path):
    turns = [{"from": "human", "value": "<image><video>Who?"}, TURNS[1]]
    assert isinstance(read("vlm_rlaif_sft", LLAVA | {"video": "v.mp4", "conversations": turns}, tmp_path), RowFailure)


def test_a_wrong_turn_is_named_by_its_place(tmp_path):
    row = LLAVA | {"conversations": [TURNS[0], {"from": "user", "value": "x"}]}
    assert read("vlm_rlaif_sft", row, tmp_path).row.detail.startswith("conversations.1.from: ")


# -- from file to file


def convert(folder, rows: list[dict] | str, target: str, name: str = "out.jsonl", status: int = 0) -> list[dict]:
    """Convert in.jsonl with these rows, and return the rows that were written."""
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "in.jsonl").write_text(text)
    assert main.main(["data", "convert", str(folder / "in.jsonl"), str(folder / name), "--to", target]) == status
    return [json.loads(line) for line in (folder / name).read_text().splitlines()] if status == 0 else []


def test_what_native_holds_never_replaces_a_field(tmp_path):
    row = PAIR | {"native": {"rlaif": {"chosen": "OLD", "note": "kept"}}}
    assert convert(tmp_path, [row], "rlaif") == [PAIR | {"note": "kept"}]


def test_fields_of_turns_are_carried_along_or_counted(tmp_path, capsys):
    row = SFT | {"messages": [SFT["messages"][0] | {"name": "bob"}, SFT["messages"][1]]}
    assert convert(tmp_path, [row], "sft") == [row]
    frames = {"frames": ["f/0.jpg"]}
    convert(tmp_path, [row | frames], "vlm_rlaif_sft", "other.jsonl")
    assert "vlm_rlaif_sft does not hold turn_fields (1 rows)" in capsys.readouterr().out


def test_frames_without_a_video_are_exported(tmp_path):
    row = {name: value for name, value in SFT.items() if name != "video"} | {"frames": ["f/0.jpg", "f/1.jpg"]}
    (written,) = convert(tmp_path, [row], "vlm_rlaif_sft")
    assert written["images"] == ["f/0.jpg", "f/1.jpg"]


@pytest.mark.parametrize("frames", [8, True, {"a": 1}])
def test_frames_of_another_meaning_do_not_stop_an_export(frames, tmp_path):
    row = SFT | {"frames": frames, "native": {"vlm_rlaif_sft": {"video": {}}}}
    assert convert(tmp_path, [row], "vlm_rlaif_sft")[0]["video"] == "v.mp4"


def test_missing_media_are_counted_whatever_the_target(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "v.mp4").write_bytes(b"x")
    (tmp_path / "out").mkdir()
    convert(tmp_path, [LLAVA | {"video": "v.mp4"}], "sft", "out/rows.jsonl")
    told = capsys.readouterr().out
    assert "1 media that rows name are not there: v.mp4; the first is beside IN: add --root" in told


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_as_out_stays_one(exists, tmp_path):
    real = tmp_path / "real.jsonl"
    if exists:
        real.write_text("old\n")
    (tmp_path / "link.jsonl").symlink_to(real)
    assert convert(tmp_path, [PAIR], "rlaif", "link.jsonl") == [PAIR]
    assert os.path.islink(tmp_path / "link.jsonl") and json.loads(real.read_text()) == PAIR


def test_a_pair_without_prompt_id_goes_to_safesora_under_its_own_name(tmp_path):
    row = {"pair_id": "7", "question": "a dog", "chosen_video": "a.mp4", "rejected_video": "b.mp4"}
    (written,) = convert(tmp_path, [row | {"dimension": "helpfulness"}], "safesora")
    assert written["prompt_id"] == "7"


@pytest.mark.parametrize("safety", [{"is_safe": True}, {"video_labels": [1]}])
def test_safety_that_is_not_by_side_is_a_bad_row(safety, tmp_path, capsys):
    row = {"pair_id": "7", "question": "a dog", "chosen_video": "a.mp4", "rejected_video": "b.mp4"}
    convert(tmp_path, [row | {"dimension": "helpfulness", "safety": safety}], "safesora", status=1)
    assert f"safety.{next(iter(safety))}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ("{'pair_id': 'b', 'question': 'x'}", "1 not JSON"),
        ('{"pair_id": "b"} {"pair_id": "c"}', "write one object per line"),
    ],
)
def test_a_wrong_last_line_is_one_bad_row_and_no_cut_file(last, told, tmp_path, capsys):
    assert convert(tmp_path, json.dumps(PAIR) + "\n" + last, "rlaif") == [PAIR]
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("end", range(1, 120, 7))
def test_a_cut_last_line_is_a_cut_file_wherever_it_is_cut(end, tmp_path, capsys):
    row = json.dumps(PAIR | {"margin": -1.5, "note": None, "ok": True, "text": "\u00e4\\ \U0001f600"})
    convert(tmp_path, json.dumps(PAIR) + "\n" + row[: min(end, len(row) - 1)], "rlaif", status=1)
    assert "expected a whole file at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"PK\x03\x04rest", "a zip file"),
        (b"BZh91AY", "a bzip2 file"),
        (b"\x28\xb5\x2f\xfdrest", "a Zstandard file"),
        (b"ARROW1\x00\x00", "an Arrow file"),
        (b'{\n "pair_id": "a"\n}\n', "an object over several lines"),
        (json.dumps(PAIR).encode() + b"\r" + json.dumps(PAIR).encode() + b"\r", "carriage return alone"),
    ],
)
def test_another_kind_of_file_is_named(data, told, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(data)
    assert main.main(["data", "check", str(tmp_path / "a.jsonl")]) == 1
    captured = capsys.readouterr()
    assert told in captured.out + captured.err


def test_a_video_named_like_a_stored_image_is_looked_for(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(json.dumps(PAIR | {"video": "sha256:nothere"}) + "\n")
    assert main.main(["data", "check", str(tmp_path / "a.jsonl")]) == 1
    assert "0 of 1 rows kept" in capsys.readouterr().out


def test_all_nan_columns_of_a_table_cost_no_row(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "v.png")
    rows = [LLAVA | {"id": str(number), "image": math.nan, "video": "v.png", "label": math.nan} for number in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert main.main(["data", "check", str(tmp_path / "a.parquet")]) == 0, capsys.readouterr()
