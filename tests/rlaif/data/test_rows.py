import json
from dataclasses import replace

import pytest

from rlaif.data.files import write_rows
from rlaif.data.formats.own import PAIRS
from rlaif.data.preference import PreferencePair
from rlaif.data.read import read_records
from rlaif.data.rows import Conversation
from rlaif.data.videos import check_videos, skip_bad_videos, video_path, videos_of
from rlaif.errors import DataError
from rlaif.records import Prompt
from rlaif.video.decode import sample_spec

PROMPT = {"prompt_id": "p", "video": "v.mp4", "question": "what moves?"}
TURNS = [{"role": "user", "content": "what moves?"}, {"role": "assistant", "content": "a cat"}]
TALK = {"id": "c", "video": "v.mp4", "messages": TURNS}
PAIR = {"pair_id": "r", "video": "v.mp4", "question": "what moves?", "chosen": "a cat", "rejected": "a dog"}
GOOD = {"prompts": PROMPT, "conversations": TALK, "pairs": PAIR}
RECORD = PreferencePair("r", "what moves?", "a cat", "a dog", video="v.mp4")


def write(root, *rows):
    """Write a file of `rows`, which are objects or whole lines, beside a video `v.mp4`."""
    (root / "v.mp4").touch()
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (root / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return root / "rows.jsonl"


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


def test_good_rows(tmp_path):
    full = PROMPT | {"answer": "a cat", "captions": ["one", "two"], "scene": {"seed": 3}}
    rows, report = read_records(write(tmp_path, full, PROMPT | {"prompt_id": "q"}, b"  "), tmp_path, "prompts")
    assert rows == [
        Prompt("p", "v.mp4", "what moves?", "a cat", ("one", "two"), {"scene": {"seed": 3}}),
        Prompt("q", "v.mp4", "what moves?"),
    ]
    assert report.counts == {"kept": 2} and report.summary().endswith("2 of 2 rows kept")
    rows, _ = read_records(write(tmp_path, TALK | {"captions": ["one"]}), tmp_path, "conversations")
    assert rows == [Conversation("c", "v.mp4", (("user", "what moves?"), ("assistant", "a cat")), ("one",))]
    rows, _ = read_records(write(tmp_path, PAIR | {"rejected": ""}), tmp_path, "pairs")
    assert rows == [replace(RECORD, rejected="")]
    assert rows[0].signs == {"overall": 1} and rows[0].videos == ("v.mp4",)


def test_a_training_pair_has_dimensions_and_margin(tmp_path):
    about = {"dimension": "helpfulness", "dimensions": {"harmlessness": -1}, "margin": 2, "scores": [], "judge": {}}
    rows, _ = read_records(write(tmp_path, PAIR | about), tmp_path, "pairs")
    signs = {"harmlessness": -1}
    assert rows == [replace(RECORD, dimension="helpfulness", dimensions=signs, margin=2.0)]
    assert rows[0].signs == {"helpfulness": 1, "harmlessness": -1}


def test_a_training_pair_of_videos_needs_both(tmp_path):
    (tmp_path / "w.mp4").touch()
    row = {"pair_id": "r", "prompt_id": "p", "question": "a cat", "chosen_video": "v.mp4", "rejected_video": "w.mp4"}
    (pair, _), report = read_records(write(tmp_path, row, PAIR | {"pair_id": "s"}), tmp_path, "pairs")
    assert pair == PreferencePair("r", "a cat", chosen_video="v.mp4", rejected_video="w.mp4", prompt_id="p")
    assert pair.videos == ("v.mp4", "w.mp4")
    other = replace(pair, pair_id="s", rejected_video="v.mp4")
    assert skip_bad_videos([pair, other], {"w.mp4": "bad"}, report) == [other]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet"])
def test_pairs_are_read_from_every_kind_of_file(tmp_path, ending):
    """What `rlaif data convert` and `rlaif pairs` write, `rlaif reward` reads: nested fields are JSON text in a parquet file."""
    (tmp_path / "v.mp4").touch()
    about = {"dimension": "helpful", "dimensions": {"harmless": -1}, "margin": 0.5, "judge": {"model": "m"}}
    rows = [PAIR | about | {"captions": ["one"], "pair_id": str(n)} for n in range(3)]
    rows += [PAIR | {"pair_id": "gone", "video": "gone.mp4"}, PAIR | {"pair_id": "1"}]
    path = tmp_path / f"pairs{ending}"
    write_rows(path, map(PAIRS.columns, rows) if ending == ".parquet" else rows, PAIRS.schema)
    found, report = read_records(path, tmp_path, "pairs")
    pair = replace(RECORD, captions=("one",), dimension="helpful", dimensions={"harmless": -1}, margin=0.5)
    assert found == [replace(pair, pair_id=str(n)) for n in range(3)]
    assert report.counts == {"kept": 3, "video missing": 1, "duplicate id": 1}
    unit = "line" if ending.startswith(".jsonl") else "row"
    assert f"{unit} 4, id 'gone'" in report.summary() and f"{unit} 2 has it already" in report.summary()
    skip_bad_videos(found[:1], {"v.mp4": "bad"}, report)
    assert f"video unusable: {unit} 1" in report.summary()


def test_a_file_of_another_kind_says_which_are_read(tmp_path):
    with pytest.raises(DataError, match=r"ends in \.jsonl, .*\.parquet"):
        read_records(tmp_path / "pairs.csv", tmp_path, "pairs")


@pytest.mark.parametrize(
    ("root", "video", "whole"), [(None, "s3://b/v.mp4", "s3://b/v.mp4"), ("gs://b/d", "v.mp4", "gs://b/d/v.mp4")]
)
def test_a_video_in_a_bucket_is_said_to_be_there(tmp_path, root, video, whole):
    path = write(tmp_path, PROMPT | {"video": video})
    with pytest.raises(DataError, match=f"expected a video at a local path, found the URI {whole}"):
        read_records(path, root or tmp_path, "prompts")
    assert video_path("gs://b/d", "/elsewhere/v.mp4").as_posix() == "/elsewhere/v.mp4"


SYSTEM = {"role": "system", "content": "be brief"}
BAD_ROWS = [
    ("prompts", b'{"prompt_id": "x", ', "not JSON", "Expecting"),
    ("prompts", b'{"prompt_id": "\xff\xfe"}', "not JSON", "utf-8"),
    ("prompts", b"[1, 2]", "not an object", "list"),
    ("prompts", without(PROMPT, "prompt_id"), "missing field", "prompt_id"),
    ("prompts", without(PROMPT, "question") | {"prompt_id": "x"}, "missing field", "question"),
    ("prompts", PROMPT | {"prompt_id": 7}, "wrong type", "prompt_id"),
    ("prompts", PROMPT | {"prompt_id": "x", "captions": "one"}, "wrong type", "captions"),
    ("prompts", PROMPT | {"prompt_id": "x", "video": ""}, "empty field", "video"),
    ("prompts", PROMPT | {"question": "again?"}, "duplicate id", "line 1"),
    ("prompts", PROMPT | {"prompt_id": "x", "video": "gone.mp4"}, "video missing", "gone.mp4"),
    ("prompts", PROMPT | {"prompt_id": "x", "video": "a/../../v.mp4"}, "video outside root", "a/../../v.mp4"),
    ("conversations", without(TALK, "messages") | {"id": "x"}, "missing field", "messages"),
    ("conversations", TALK | {"id": "x", "messages": []}, "turns out of order", "[]"),
    ("conversations", TALK | {"id": "x", "messages": TURNS[:1]}, "turns out of order", "user"),
    ("conversations", TALK | {"id": "x", "messages": [*TURNS, SYSTEM]}, "turns out of order", "system"),
    ("conversations", TALK | {"id": "x", "messages": [{"role": "gpt", "content": "hi"}]}, "wrong type", "role"),
    ("pairs", without(PAIR, "rejected") | {"pair_id": "x"}, "missing field", "rejected"),
    ("pairs", PAIR | {"pair_id": "x", "rejected": "a cat"}, "chosen equals rejected", "a cat"),
    ("pairs", PAIR | {"pair_id": "x", "chosen": ""}, "empty field", "chosen"),
    ("pairs", without(PAIR, "video") | {"pair_id": "x"}, "missing field", "video"),
    ("pairs", without(PAIR, "chosen") | {"pair_id": "x"}, "missing field", "chosen"),
    ("pairs", PAIR | {"pair_id": "x", "chosen_video": "v.mp4"}, "missing field", "rejected_video"),
    ("pairs", PAIR | {"pair_id": "x", "rejected_video": "v.mp4"}, "missing field", "chosen_video"),
    ("pairs", PAIR | {"pair_id": "x", "chosen_video": "v.mp4", "rejected_video": "w.mp4"}, "video missing", "w.mp4"),
    ("pairs", PAIR | {"pair_id": "x", "dimensions": {"style": 0}}, "wrong type", "style"),
    ("pairs", PAIR | {"pair_id": "x", "dimensions": {"overall": -1}}, "dimensions contradict", "overall"),
    ("pairs", PAIR | {"pair_id": "x", "margin": "2"}, "wrong type", "margin"),
]


@pytest.mark.parametrize(("kind", "bad", "reason", "detail"), BAD_ROWS, ids=[f"{r[0]}-{r[2]}-{r[3]}" for r in BAD_ROWS])
def test_a_bad_row_is_counted_named_and_skipped_or_fatal(tmp_path, kind, bad, reason, detail):
    good = GOOD[kind]
    path = write(tmp_path, good, bad)
    rows, report = read_records(path, tmp_path, kind)
    assert len(rows) == 1 and report.counts == {"kept": 1, reason: 1}
    (row,) = report.skipped[reason]
    assert row.line == 2 and detail in row.detail and "line 2" in report.summary()
    with pytest.raises(DataError, match=reason):
        read_records(path, tmp_path, kind, strict=True)
    with pytest.raises(DataError, match="at least one good row"):  # nothing but bad rows
        read_records(write(tmp_path, bad if reason != "duplicate id" else b"{}"), tmp_path, kind)


def test_a_system_turn_may_come_first(tmp_path):
    rows, _ = read_records(write(tmp_path, TALK | {"messages": [SYSTEM, *TURNS, *TURNS]}), tmp_path, "conversations")
    assert [role for role, _ in rows[0].messages] == ["system", "user", "assistant", "user", "assistant"]


def test_a_conversation_may_be_about_no_video(tmp_path):
    rows, report = read_records(
        write(tmp_path, without(TALK, "video"), TALK | {"id": "d", "video": None}), tmp_path, "conversations"
    )
    assert [row.video for row in rows] == ["", ""] and report.counts == {"kept": 2}
    assert [videos_of(row) for row in rows] == [(), ()]


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_records(tmp_path / "rows.jsonl", tmp_path, "prompts")
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(DataError, match="no rows at all"):
        read_records(tmp_path / "rows.jsonl", tmp_path, "prompts")


def test_errors_list_ten_rows_in_full_and_the_others_by_their_place(tmp_path):
    with pytest.raises(DataError) as raised:
        read_records(write(tmp_path, PROMPT, *[b"nonsense"] * 25), tmp_path, "prompts", strict=True)
    assert raised.value.found.count("  not JSON: line ") == 10
    assert "1 of 26 rows kept, 25 not JSON" in raised.value.found
    assert "and 15 more: line 12, line 13, " in raised.value.found and raised.value.found.endswith(", line 26")


def test_video_paths(tmp_path):
    assert video_path(tmp_path, "a/./b/../v.mp4") == tmp_path / "a/v.mp4"
    assert video_path(tmp_path, "/elsewhere/v.mp4").as_posix() == "/elsewhere/v.mp4"
    assert video_path(tmp_path, "..hidden.mp4") == tmp_path / "..hidden.mp4"
    with pytest.raises(DataError, match="path inside"):
        video_path(tmp_path, "../v.mp4")


def test_videos_are_checked_before_anything_starts(tmp_path, video_file):
    good, short = video_file("good.mp4", 12), video_file("short.mp4", 3)
    (tmp_path / "v.mp4").write_bytes(good.read_bytes()[:200])
    names = ["good.mp4", "short.mp4", "v.mp4"]
    rows, report = read_records(
        write(tmp_path, *[PROMPT | {"prompt_id": str(n), "video": name} for n, name in enumerate(names * 2)]),
        tmp_path,
        "prompts",
    )
    bad = check_videos([row.video for row in rows], lambda video: sample_spec(tmp_path / video, 8))
    assert list(bad) == ["short.mp4", "v.mp4"]
    assert "at least 8 frames" in bad["short.mp4"] and "3 frames" in bad["short.mp4"] and str(short) in bad["short.mp4"]
    with pytest.raises(DataError, match="video unusable: line 2, id '1'"):
        skip_bad_videos(rows, bad, read_records(tmp_path / "rows.jsonl", tmp_path, "prompts")[1], strict=True)
    assert [row.prompt_id for row in skip_bad_videos(rows, bad, report)] == ["0", "3"]
    assert report.counts == {"kept": 2, "video unusable": 4}
    with pytest.raises(DataError, match="at least one good row"):
        skip_bad_videos(
            rows, dict.fromkeys(names, "bad"), read_records(tmp_path / "rows.jsonl", tmp_path, "prompts")[1]
        )


@pytest.fixture
def video_file(tmp_path):
    import numpy as np

    from rlaif.worlds.shapes.render import write_mp4

    def make(name, length):
        random = np.random.default_rng(0).integers(0, 255, (length, 64, 64, 3), dtype=np.uint8)
        write_mp4(tmp_path / name, np.zeros_like(random))
        return tmp_path / name

    return make
