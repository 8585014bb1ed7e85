"""What is written in another format is what its own tools read, and what it does not hold is said."""

from __future__ import annotations

import gzip
import json

import pytest
from odd_files import PAIR, TEXT_PAIR, data, make_world, pds, reward_pair, rows_of
from preference_rows import LOGPS, RLAIF_V, RLHF_V, gpt, human, picture

from rlaif.data.files import write_rows
from rlaif.data.formats.table import FORMATS

IMAGE = PAIR | {"video": "img.jpg", "modality": "image"}


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


@pytest.fixture
def published(world):
    """RLAIF-V's file: one row with an image inside."""
    write_rows(world / "in.parquet", [RLAIF_V], FORMATS["rlaif_v"].schema)
    return world / "in.parquet"


@pytest.mark.parametrize("to", ["pds_dpo", "vlm_rlaif_rm"])
def test_an_image_is_named_as_a_file(world, published, capsys, to):
    assert data(capsys, "convert", published, world / "out.json", "--to", to, "--media", world / "med")[0] == 0
    (row,) = rows_of(world / "out.json")
    assert (world / row["image"]).read_bytes() == RLAIF_V["image"]["bytes"]


def test_ids_have_the_type_of_the_target(world, published, capsys):
    media = ("--media", world / "med")
    assert data(capsys, "convert", published, world / "v.parquet", "--to", "rlhf_v", *media)[0] == 0
    assert rows_of(world / "v.parquet")[0]["idx"] == 4
    assert data(capsys, "convert", world / "v.parquet", world / "w.parquet", "--to", "rlaif_v", *media)[0] == 0
    assert rows_of(world / "w.parquet")[0]["idx"] == "4"
    write_rows(
        world / "named.parquet", [RLAIF_V | {"idx": "a-7"}, RLAIF_V | {"idx": "9" * 30}], FORMATS["rlaif_v"].schema
    )
    code, out, _ = data(capsys, "convert", world / "named.parquet", world / "x.parquet", "--to", "rlhf_v", *media)
    first, second = (row["idx"] for row in rows_of(world / "x.parquet"))
    assert code == 0 and isinstance(first, int) and isinstance(second, int) and first != second
    assert "rlhf_v does not hold" in out and "provenance (2 rows)" in out


def test_prompts_get_a_whole_number_as_uid(world, capsys):
    rows = [
        {"prompt_id": name, "video": "f", "frames": ["f/0.jpg", "f/1.webp"], "question": "q"} for name in ("p-1", "7")
    ]
    write_rows(world / "in.jsonl", rows)
    code, out, _ = data(capsys, "convert", world / "in.jsonl", world / "out.json", "--to", "vlm_rlaif_rl")
    first, second = rows_of(world / "out.json")
    assert code == 0 and isinstance(first["uid"], int) and second["uid"] == 7
    assert "vlm_rlaif_rl does not hold prompt_id (1 rows)" in out
    write_rows(world / "in.jsonl", rows[::-1])
    assert data(capsys, "convert", world / "in.jsonl", world / "out.json", "--to", "vlm_rlaif_rl")[0] == 0
    assert rows_of(world / "out.json") == [second, first]  # whatever its place


def test_logps_are_read_as_rlaif_v_writes_them(world, capsys):
    wrapped = json.dumps({"logps": LOGPS})
    marked = RLAIF_V | {"idx": "2", "question": "<image>\nWhat is on the table?", "logps": json.dumps(LOGPS)}
    rows = [RLAIF_V | {"logps": wrapped}, marked]
    write_rows(world / "in.parquet", rows, FORMATS["rlaif_v"].schema)
    media = ("--media", world / "med")
    assert data(capsys, "convert", world / "in.parquet", world / "out.jsonl", "--to", "rlaif", *media)[0] == 0
    first, second = rows_of(world / "out.jsonl")
    assert first["ref_logps"] == second["ref_logps"] and first["ref_logps"]["rejected"]["tokens"] == LOGPS[5]
    assert first["question"] == second["question"] == "What is on the table?"
    assert data(capsys, "convert", world / "out.jsonl", world / "back.parquet", "--to", "rlaif_v")[0] == 0
    assert rows_of(world / "back.parquet") == rows


def test_only_real_images_and_whole_rows_are_exported_and_losses_are_said(world, capsys):
    rows = [
        IMAGE | {"video": "notes.txt"},
        IMAGE | {"pair_id": "k1", "rejected": ""},
        IMAGE | {"pair_id": "k2", "dimension": "honesty", "margin": 0.5, "captions": ["An orange."], "note": 1},
        TEXT_PAIR | {"pair_id": "k3"},
        IMAGE | {"pair_id": "k4", "video": "empty.jpg"},
        IMAGE | {"pair_id": "k5", "video": "gone.jpg"},
        PAIR | {"pair_id": "k6"},
    ]
    write_rows(world / "in.jsonl", rows)
    code, out, _ = data(capsys, "convert", world / "in.jsonl", world / "out.parquet", "--to", "rlhf_v")
    assert code == 0 and "1 of 7 rows kept" in out
    for name in ("k0", "k1", "k3", "k4", "k5", "k6"):
        assert f"id {name!r}" in out
    for name in ("dimension", "margin", "captions", "pair_id", "note"):
        assert f"{name} (1 rows)" in out
    (row,) = rows_of(world / "out.parquet")
    assert row["image"]["bytes"] == picture(0, "JPEG")
    assert (
        data(capsys, "convert", world / "out.parquet", world / "b.jsonl", "--to", "rlaif", "--media", world / "m")[0]
        == 0
    )
    code, out, _ = data(capsys, "convert", world / "in.jsonl", world / "out.json", "--to", "pds_dpo")
    assert code == 0 and [row["id"] for row in rows_of(world / "out.json")] == ["k2", "k3", "k5"]
    assert "1 media that rows name are not there: gone.jpg" in out


def test_convert_reports_no_losses_when_nothing_is_lost(world, capsys):
    write_rows(world / "in.json", [pds("<image>What?", image="img.jpg")])
    _, out, _ = data(capsys, "convert", world / "in.json", world / "out.json", "--to", "vlm_rlaif_rm")
    assert len(out.splitlines()) == 2
    write_rows(world / "two.json", [reward_pair(images=["f/1.webp", "f/0.jpg"])])
    media = ("--media", world / "med")
    assert data(capsys, "convert", world / "two.json", world / "ours.jsonl", "--to", "rlaif", *media)[0] == 0
    code, out, _ = data(capsys, "convert", world / "ours.jsonl", world / "back.json", "--to", "vlm_rlaif_rm")
    assert code == 0 and len(out.splitlines()) == 2 and rows_of(world / "back.json") == rows_of(world / "two.json")


def test_published_files_name_media_beside_the_input(world, capsys, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_rows(world / "in.json", [pds("<image>What?", image="img.jpg")])
    code, out, _ = data(capsys, "convert", world / "in.json", elsewhere / "out.parquet", "--to", "rlhf_v")
    assert code == 0 and "1 of 1 rows kept" in out and "not there" not in out


def test_frames_that_no_video_shows_are_counted_without_a_media_folder(world, capsys):
    write_rows(world / "in.json", [reward_pair(images=["f/1.webp", "f/0.jpg"])])
    code, out, _ = data(capsys, "convert", world / "in.json", world / "out.jsonl", "--to", "rlaif")
    assert code == 0 and "1 rows list frames that no video shows" in out and "--media DIR" in out


def test_compressed_files_are_written_at_level_six(world, monkeypatch):
    levels = []

    class Noted(gzip.GzipFile):
        def __init__(self, *args, **options):
            levels.append(options["compresslevel"])
            super().__init__(*args, **options)

    monkeypatch.setattr(gzip, "GzipFile", Noted)
    write_rows(world / "a.jsonl.gz", [PAIR])
    assert levels == [6]


def test_a_row_that_does_not_fit_a_parquet_column_is_one_bad_row(world, capsys):
    image = {"bytes": picture(0), "path": None}
    rows = [RLHF_V | {"idx": n, "image": image, "extra": extra} for n, extra in enumerate([1, 2])]
    write_rows(world / "in.parquet", rows, FORMATS["rlhf_v"].schema)
    media = ("--media", world / "med")
    assert data(capsys, "convert", world / "in.parquet", world / "ours.jsonl", "--to", "rlaif", *media)[0] == 0
    first, second = rows_of(world / "ours.jsonl")
    second["native"]["rlhf_v"]["extra"] = {"is": "a text in a column of numbers"}
    third = second | {"pair_id": "x", "provenance": second["provenance"] | {"origin": 7}}
    write_rows(world / "ours.jsonl", [first, second, third])
    code, out, _ = data(capsys, "convert", world / "ours.jsonl", world / "out.parquet", "--to", "rlhf_v")
    assert code == 0 and "2 of 3 rows kept, 1 does not fit its column" in out and "origin_dataset" in out, out
    assert "extra (" in out


def test_turns_of_a_system_are_kept(world, capsys):
    turns = [{"from": "system", "value": "Be brief."}, human("<video>What?")]
    row = {
        "id": "a",
        "video": "v.mp4",
        "conversations": [*turns, gpt("a")],
        "rejected_conversations": [*turns, gpt("b")],
    }
    write_rows(world / "in.json", [row])
    assert data(capsys, "convert", world / "in.json", world / "out.jsonl", "--to", "rlaif")[0] == 0
    (ours,) = rows_of(world / "out.jsonl")
    assert [turn["content"] for turn in ours["messages"]] == ["Be brief.", "What?"]
