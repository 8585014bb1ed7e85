"""Import and export are inverses: by hand-written rows, and by drawn ones, also through our own files in between."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from preference_rows import EXAMPLES, FRAMES, LOGPS, PICTURES, SAFESORA, SCORED, SPLIT, STRATEGIES, TEXT, labels

from rlaif.data.files import read_rows, write_rows
from rlaif.data.formats.base import Options
from rlaif.data.formats.safesora import DIMENSIONS
from rlaif.data.formats.safesora_items import HARM_LABELS, with_labels
from rlaif.data.formats.table import FORMATS, detect
from rlaif.data.media import Media
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Row, RowFailure
from rlaif.errors import DataError
from rlaif.video.decode import decode, probe_video, sample_spec

OWN = {"pairs": "rlaif", "prompts": "prompts", "conversations": "sft"}


@pytest.fixture
def options(tmp_path):
    return Options(Media(tmp_path, tmp_path / "media"))


def imported(name, rows, options=None):
    """Return the records of rows; a row that is rejected fails the test."""
    records = list(FORMATS[name].read([Row(n, row) for n, row in enumerate(rows, 1)], options))
    assert not [record for record in records if isinstance(record, RowFailure)], records
    return records


def exported(name, records, options=None):
    rows = list(FORMATS[name].write(records, options))
    assert not [row for row in rows if isinstance(row, RowFailure)], rows
    return rows


def same(rows, expected):
    """Equal, and equal in type: 1, 1.0 and true are different rows."""
    assert rows == expected
    assert repr(sorted(map(canonical, rows))) == repr(sorted(map(canonical, expected)))


def canonical(row):
    return json.dumps(row, sort_keys=True, default=lambda data: data.hex())


def through(records, path: Path, name: str):
    """Write records as our own rows, and read them again."""
    own = FORMATS[name]
    rows = exported(name, records)
    write_rows(path, map(own.columns, rows) if path.suffix == ".parquet" else rows, own.schema)
    return list(own.read(read_rows(path)))


@pytest.mark.parametrize("name", EXAMPLES)
def test_published_rows_come_back(name, options):
    same(exported(name, imported(name, EXAMPLES[name], options), options), EXAMPLES[name])


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        (name, ending)
        for name in EXAMPLES
        if FORMATS[name].kind in OWN
        for ending in (".jsonl", ".json.gz", *((".parquet",) if FORMATS[name].kind == "pairs" else ()))
    ],
)
def test_published_rows_come_back_through_our_own_files(name, ending, options, tmp_path):
    own = OWN[FORMATS[name].kind]
    records = imported(name, EXAMPLES[name], options)
    again = through(records, tmp_path / f"own{ending}", own)
    assert again == records
    same(exported(name, again, options), EXAMPLES[name])


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_drawn_rows_come_back(name, data):
    rows = data.draw(st.lists(STRATEGIES[name], min_size=1, max_size=3))
    if name == "rlaif":
        rows = list({row["pair_id"]: row for row in rows}.values())
    with tempfile.TemporaryDirectory() as folder:
        options = Options(Media(Path(folder), Path(folder, "media")))
        records = imported(name, rows, options)
        same(exported(name, records, options), rows)
        own = OWN.get(FORMATS[name].kind)
        for ending in [".jsonl", *([".parquet"] if own == "rlaif" else [])] if own else []:
            again = through(records, Path(folder, f"own{ending}"), own)
            assert again == records
            same(exported(name, again, options), rows)


@pytest.mark.parametrize("name", ["rlhf_v", "rlaif_v"])
def test_published_columns_survive_their_own_file(name, options, tmp_path):
    rows = [row for row in EXAMPLES[name] if row.keys() == EXAMPLES[name][0].keys()]
    write_rows(tmp_path / "a.parquet", rows, FORMATS[name].schema)
    records = list(FORMATS[name].read(read_rows(tmp_path / "a.parquet"), options))
    same(exported(name, records, options), rows)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_first_row_says_which_format_it_is(name):
    assert detect(EXAMPLES[name]).name == name


def test_an_unknown_row_lists_the_formats():
    with pytest.raises(DataError) as error:
        detect([{"prompt": "?", "winner": "a"}])
    assert "prompt, winner" in str(error.value) and all(name in str(error.value) for name in FORMATS)


# -- what the fields of a record say


def test_reward_model_pairs():
    first, second, third, fourth = imported("vlm_rlaif_rm", EXAMPLES["vlm_rlaif_rm"])
    assert (first.question, first.chosen, first.rejected) == ("What happens?", "A man sits.", "A man runs.")
    assert (first.video, list(first.frames), first.modality) == ("anet_50frames/v_1", FRAMES, "video")
    assert second.messages == (("user", "What happens?"), ("assistant", "He runs."), ("user", "Why?"))
    assert (second.question, second.chosen, second.video) == ("Why?", "He is late.", None)
    assert (third.video, third.modality, third.question) == ("coco/1.jpg", "image", "What is  this?")
    assert (fourth.video, fourth.modality) == (None, "text")
    assert len({record.pair_id for record in (first, second, third, fourth)}) == 4 and second.pair_id == "r2"


def test_ids_do_not_depend_on_the_place_in_the_file():
    rows = EXAMPLES["vlm_rlaif_rm"]
    ids = {record.pair_id for record in imported("vlm_rlaif_rm", rows[::-1])}
    assert ids == {record.pair_id for record in imported("vlm_rlaif_rm", rows)}


def test_prompts_and_conversations_become_rows_of_ours(tmp_path):
    prompt, image = exported("prompts", imported("vlm_rlaif_rl", EXAMPLES["vlm_rlaif_rl"]))
    assert {"prompt_id": "12", "video": "anet_50frames/v_1", "question": "What happens?"}.items() <= prompt.items()
    assert prompt["answer"] == "A man runs." and prompt["frames"] == FRAMES
    assert image["video"] == "one.jpg" and image["modality"] == "image" and "answer" not in image
    talk, again = exported("sft", imported("vlm_rlaif_sft", EXAMPLES["vlm_rlaif_sft"]))
    assert talk["id"] == "s1" and talk["video"] == "anet_50frames/v_1" and again["id"] == "s1#2"
    assert talk["messages"][0] == {"role": "user", "content": "What?"} and len(talk["messages"]) == 4
    assert again["messages"][0]["content"] == "Name it."


def test_safesora_pairs():
    first, second = imported("safesora", EXAMPLES["safesora"])
    assert (first.chosen_video, first.rejected_video) == ("/data/videos/p7/v1.mp4", "/data/videos/p7/v0.mp4")
    assert first.question == "a dog chases a kite" and first.video is None and first.dimension == "helpfulness"
    assert first.signs == dict.fromkeys(DIMENSIONS, 1) | {"harmlessness": -1, "correctness": -1}
    assert first.safety == {"prompt_type": "safety_neutral", "is_safe": {"chosen": False, "rejected": True}}
    assert [item["model"] for item in first.candidates] == ["model-a", "model-b"]
    assert second.signs["informativeness"] == 1 and second.pair_id == "17" and second.prompt_id == "7"
    assert second.chosen_video == "videos/p7/v2.mp4"  # where a row names none: as published
    assert [(score["value"], score.get("candidate")) for score in second.scores] == [
        (1.5, None),
        (0.5, "chosen"),
        (-1, "chosen"),
        (0.5, "rejected"),
        (-1, "rejected"),
    ]
    assert second.candidates[0]["metrics"] == SCORED["metrics"]


def test_safesora_along_another_dimension_is_the_same_row():
    records = imported("safesora", EXAMPLES["safesora"])
    harmless = [record.along("harmlessness") for record in records]
    assert harmless[0].chosen_video == "/data/videos/p7/v0.mp4" and harmless[0].safety["is_safe"]["chosen"] is True
    same(exported("safesora", harmless), EXAMPLES["safesora"])


def test_safesora_videos_move_with_video_dir():
    (record,) = imported("safesora", [SAFESORA], Options(video_dir="clips/"))
    assert (record.chosen_video, record.rejected_video) == ("clips/p7/v1.mp4", "clips/p7/v0.mp4")
    assert exported("safesora", [record])[0]["video_0"]["video_path"] == "clips/p7/v0.mp4"
    (video,) = imported("safesora_videos", EXAMPLES["safesora_videos"][:1], Options(video_dir="/x"))
    assert video.video_path == "/x/p7/v0.mp4"


def test_safesora_labels_join_on_the_video():
    videos = imported("safesora_videos", EXAMPLES["safesora_videos"])
    joined, alone = with_labels(imported("safesora", EXAMPLES["safesora"]), videos)
    assert joined.safety["video_labels"] == {"chosen": labels("crime", "hate"), "rejected": labels()}
    assert tuple(joined.safety["prompt_labels"]) == HARM_LABELS
    assert list(alone.safety["video_labels"]) == ["rejected"]  # its own; no listed video is in it
    row = exported("safesora", [joined])[0]
    assert row["video_1"]["video_labels"] == labels("crime", "hate") and row["helpfulness"] == "video_1"


def test_scores_that_were_added_are_exported():
    (record,) = imported("safesora", EXAMPLES["safesora"][1:])
    more = record.with_scores([{"value": 3.0, "from": "rm-c", "candidate": "rejected"}])
    again = PreferencePair.from_row(json.loads(json.dumps(more.to_row())))
    (row,) = exported("safesora", [again])
    assert row["video_1"]["scores"] == [*SCORED["scores"], {"value": 3.0, "from": "rm-c"}]
    assert row["video_0"] == EXAMPLES["safesora"][1]["video_0"]
    assert row["scores"] == EXAMPLES["safesora"][1]["scores"]
    (row,) = exported("safesora", [replace(again, native={})])
    assert row["scores"] == EXAMPLES["safesora"][1]["scores"] and len(row["video_1"]["scores"]) == 3


def test_a_changed_informativeness_is_exported_under_one_name():
    (record,) = imported("safesora", EXAMPLES["safesora"][1:])
    assert "information" in exported("safesora", [record])[0]["sub_preferences"]
    changed = replace(record, dimensions=record.dimensions | {"informativeness": -1})
    sub = exported("safesora", [changed])[0]["sub_preferences"]
    assert sub["informativeness"] == "video_1" and "information" not in sub


def test_the_first_turn_alone_has_the_placeholder():
    messages = (("system", "be brief"), ("user", "what?"), ("assistant", "a cat"), ("user", "where?"))
    record = PreferencePair("a", "where?", "there", "here", video="d/1.jpg", modality="image", messages=messages)
    (row,) = exported("pds_dpo", [record])
    assert [turn["value"] for turn in row["conversations"]] == [
        "be brief",
        "<image> what?",
        "a cat",
        "where?",
        "there",
    ]
    (row,) = exported("vlm_rlaif_rm", [record])
    assert [turn["value"] for turn in row["conversations"]] == ["be brief", "<image>\nwhat?", "a cat", "where?", ""]


def test_a_folder_of_two_images_is_not_one_image(options, tmp_path):
    (record,) = imported("rlaif_v", EXAMPLES["rlaif_v"][:1], options)
    (tmp_path / record.video / "1.png").write_bytes(PICTURES[2])
    (bad,) = FORMATS["rlaif_v"].write([record], options)
    assert bad.reason == "not one image" and "2 files" in bad.row.detail


def test_images_are_stored_once_and_open_as_videos(options, tmp_path):
    records = imported("rlhf_v", EXAMPLES["rlhf_v"], options)
    assert records[0].video == records[2].video != records[1].video and records[0].modality == "image"
    assert len([path for path in (tmp_path / "media").rglob("*") if path.is_file()]) == 2
    for record, data in zip(records, PICTURES[:2], strict=False):
        path = tmp_path / record.video
        assert probe_video(path).total_frames == 1 and decode(path, sample_spec(path, 1)).shape == (1, 6, 8, 3)
        assert next(path.iterdir()).read_bytes() == data
    image = np.asarray(Image.open(next((tmp_path / records[1].video).iterdir())))
    path = tmp_path / records[1].video
    assert (decode(path, sample_spec(path, 1))[0] == image).all()
    assert records[3].video == "table.png" and records[4].video == "pictures/table.png"


def test_images_need_a_folder():
    with pytest.raises(DataError, match="--media"):
        list(FORMATS["rlhf_v"].read([Row(1, EXAMPLES["rlhf_v"][0])]))


def test_rlhf_v_rows_become_records(options):
    first, second, third, *_ = imported("rlhf_v", EXAMPLES["rlhf_v"], options)
    assert {name: getattr(first, name) for name in TEXT} == TEXT and first.pair_id == "corrections-4"
    assert first.provenance["model"] == SPLIT["model"] and first.provenance["question_type"] == SPLIT["type"]
    assert second.ref_logps == {
        "chosen": {"sum": LOGPS[0], "mean": LOGPS[1], "tokens": LOGPS[2]},
        "rejected": {"sum": LOGPS[3], "mean": LOGPS[4], "tokens": LOGPS[5]},
    }
    assert third.chosen == "é" and not third.ref_logps


def test_an_answer_edited_after_the_import_is_not_undone(options):
    for name in ("rlhf_v", "pds_dpo", "vlm_rlaif_rm"):
        for record in imported(name, EXAMPLES[name], options):
            edited = replace(record, chosen="an edited answer")
            (row,) = exported(name, [edited], options)
            assert "an edited answer" in str(row), (name, row)
            assert imported(name, [row], options)[0].chosen == "an edited answer"


# -- from one published format to another


@pytest.mark.parametrize("source", ["vlm_rlaif_rm", "pds_dpo", "rlhf_v", "rlaif_v"])
@pytest.mark.parametrize("target", ["vlm_rlaif_rm", "pds_dpo", "rlhf_v", "rlaif_v"])
def test_pairs_about_one_image_convert_to_every_format(source, target, options, tmp_path):
    (tmp_path / "one.png").write_bytes(PICTURES[0])
    record = PreferencePair(
        "p-1", "What is it?", "a cat", "a dog", video="one.png", modality="image", dimensions={"overall": 1}
    )
    record = imported(source, exported(source, [record], options), options)[0]
    (row,) = exported(target, [record], options)
    again = imported(target, [row], options)[0]
    assert (again.question, again.chosen, again.rejected) == ("What is it?", "a cat", "a dog")
    if target in ("rlhf_v", "rlaif_v"):
        assert row["image"]["bytes"] == PICTURES[0]


@pytest.mark.parametrize(
    ("target", "record", "reason"),
    [
        ("safesora", PreferencePair("a", "q", "x", "y", video="v"), "candidates are texts"),
        ("safesora", PreferencePair("a", "q", chosen_video="x", rejected_video="y"), "unknown dimension"),
        ("pds_dpo", PreferencePair("a", "q", chosen_video="x", rejected_video="y"), "candidates are videos"),
        ("vlm_rlaif_rm", PreferencePair("a", "q", "x", "y", video="v.mp4"), "no frame list"),
        ("rlhf_v", PreferencePair("a", "q", "x", "y", video="v.mp4"), "not one image"),
        ("rlaif_v", PreferencePair("a", "q", "x", "y", video="gone.png", modality="image"), "image missing"),
        (
            "rlhf_v",
            PreferencePair("a", "q", "x", "y", video="a.png", modality="image", ref_logps={"chosen": {}}),
            "ref_logps incomplete",
        ),
        ("rlaif_v", PreferencePair("a", "q", "x", "y", modality="text"), "not one image"),
    ],
)
def test_rows_that_a_format_cannot_hold_are_named(target, record, reason, options):
    (bad,) = FORMATS[target].write([record], options)
    assert isinstance(bad, RowFailure) and bad.reason == reason and bad.row.id == "a"
